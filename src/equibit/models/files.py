"""Writing networks to model files and reading them back as potentials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from equibit.models.shipped import resolve_model
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import TorchPotential
from equibit.networks.registry import AnyNetworkConfig, build_network
from equibit.quantization.state import export_state, import_state
from equibit.storage.container import Container, read_container, write_container
from equibit.structures.errors import FileFormatError, ModelError

UNITS = {"length": "angstrom", "energy": "eV"}


def save_model(
    path: str | Path,
    network: AtomisticNetwork,
    *,
    name: str,
    training: Mapping[str, Any],
) -> None:
    """Write a network, its configuration and its training record as one checked file.

    Weights of quantised layers are stored as packed codes and steps, everything else in float32;
    the energy reference stays in float64.

    Raises:
        WriteError: the file cannot be written; what was there before stays.
    """
    quantization = None
    if network.recipe is None:
        tensors = {key: value.detach().cpu().numpy() for key, value in network.state_dict().items()}
    else:
        tensors, quantization = export_state(network)
    tensors = {key: _stored(key, value) for key, value in tensors.items()}
    header = {
        "kind": "model",
        "name": name,
        "network": json.loads(network.config.model_dump_json()),
        "quantization": quantization,
        "units": UNITS,
        "training": dict(training),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_container(path, tensors, header)


def _stored(key: str, array: np.ndarray) -> np.ndarray:
    if key in ("energy_scale", "energy_shift"):
        return array
    return array.astype(np.float32) if array.dtype == np.float64 else array


def load_network(name_or_path: str | Path) -> tuple[AtomisticNetwork, dict[str, Any]]:
    """The network of a model file, in float32, and the file's header.

    Raises:
        ModelError: no such model.
        FileFormatError: damaged, foreign, newer or inconsistent file.
    """
    path = resolve_model(name_or_path)
    container = read_container(path, kind="model")
    try:
        config = TypeAdapter(AnyNetworkConfig).validate_python(container.header["network"])
        network = build_network(config)
    except (KeyError, ValidationError, ValueError) as error:
        raise FileFormatError(f"{path}: its network description is not usable: {error}") from error
    quantization = container.header.get("quantization")
    if quantization is None:
        _fill(path, network, container)
    else:
        try:
            import_state(network, container.tensors, quantization)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"its quantisation lacks {error}" if isinstance(error, KeyError) else error
            raise FileFormatError(f"{path}: {reason}") from error
    return network.eval(), container.header


def _fill(path: Path, network: AtomisticNetwork, container: Container) -> None:
    own = network.state_dict()
    missing = sorted(set(own) - set(container.tensors))
    extra = sorted(set(container.tensors) - set(own))
    if missing or extra:
        raise FileFormatError(
            f"{path}: tensors do not fit its network: missing {missing[:3]}, unexpected {extra[:3]}"
        )
    for key, value in own.items():
        stored = container.tensors[key]
        if stored.shape != tuple(value.shape):
            raise FileFormatError(
                f"{path}: tensor {key} has shape {stored.shape}, expected {tuple(value.shape)}"
            )
        value.copy_(torch.from_numpy(stored))


def load_potential(
    name_or_path: str | Path,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    canonical_orientation: bool = True,
) -> TorchPotential:
    """A model file as a ``Potential`` run by torch.

    Args:
        name_or_path: shipped name, model file, or the folder of a finished run.
        dtype: ``float32`` (default) or ``float64`` arithmetic.
        device: where to run.
        canonical_orientation: False shows the rounding noise of plain arithmetic, which depends
            on how a structure lies in space.

    Raises:
        ModelError: another dtype; else, and FileFormatError: see ``load_network``.
    """
    dtypes = {None: None, "float32": torch.float32, "float64": torch.float64}
    if dtype not in dtypes:
        raise ModelError(f"dtype is {dtype!r}; expected float32 or float64")
    network, header = load_network(name_or_path)
    if dtype is not None:
        network = network.to(dtypes[dtype])
    network.canonical_orientation = canonical_orientation
    recipe = "fp32" if network.recipe is None else network.recipe.name
    return TorchPotential(network, name=header["name"], recipe=recipe, device=device)
