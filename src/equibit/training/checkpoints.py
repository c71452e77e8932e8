"""Lightning checkpoints as versioned, checked containers instead of pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from equibit.storage.container import read_container, write_container


class ContainerCheckpointIO(CheckpointIO):
    """Stores the nested state of a run: tensors as tensors, the rest as JSON."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        tensors: dict[str, np.ndarray] = {}
        tree = _encode(checkpoint, tensors)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_container(path, tensors, {"kind": "checkpoint", "state": tree})

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        container = read_container(path, kind="checkpoint")
        return _decode(container.header["state"], container.tensors)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _encode(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    """JSON with tagged tensors, tuples and mappings whose keys are not text."""
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().numpy()
        return {"tensor": key}
    if isinstance(value, dict):
        items = [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, tuple):
        return {"tuple": [_encode(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_encode(v, tensors) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    (tag, content), *_ = value.items()
    if tag == "tensor":
        return torch.from_numpy(tensors[content])
    if tag == "tuple":
        return tuple(_decode(v, tensors) for v in content)
    if tag == "float":
        return float(content)
    return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
