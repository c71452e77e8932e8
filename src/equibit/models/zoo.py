"""The models that come with equibit: what each was made from, its figures and its card. Torch-free."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equibit.models.shipped import (
    CARD_SUFFIX,
    SUFFIX,
    resolve_model,
    shipped_file,
    shipped_models,
)
from equibit.storage import atomic_path, read_container
from equibit.storage.checksum import file_sha256
from equibit.structures.errors import FileFormatError, ModelError

FIGURES_SUFFIX = ".json"
LICENCE = "MIT"

_FIGURES: dict[str, tuple[str, ...]] = {
    "energy_mae_mev": ("model", "errors", "energy", "mae"),
    "forces_mae_mev_a": ("model", "errors", "forces", "mae"),
    "lee_mean_mev_a": ("equivariance", "forces", "mean"),
    "lee_median_mev_a": ("equivariance", "forces", "median"),
    "test_structures": ("data", "n_structures"),
    "date": ("provenance", "date"),
    "cpu": ("provenance", "cpu"),
    "threads": ("provenance", "threads"),
}


@dataclass(frozen=True)
class ZooEntry:
    """A shipped model.

    Attributes:
        name: by which every command loads it.
        recipe: name of its recipe, ``fp32`` for a float model.
        dataset, labels, split, seed: what it learnt from, as recorded when it was trained.
        parent: name of its FP32 parent, or None.
        file, bytes, sha256: the file.
        figures: on the test set of its data, by ``headline_figures``; None where none are kept.
        command: that made it, or None.
        card: its card, or None.
        licence: of the weights.
    """

    name: str
    recipe: str
    dataset: str | None
    labels: str | None
    split: int | None
    seed: int | None
    parent: str | None
    file: str
    bytes: int
    sha256: str
    figures: Mapping[str, Any] | None
    command: str | None
    card: str | None
    licence: str = LICENCE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def zoo() -> list[ZooEntry]:
    """Every shipped model, in order of name.

    Raises:
        FileFormatError: a damaged model file, or figures that belong to another file.
    """
    return [zoo_entry(name) for name in shipped_models()]


def zoo_entry(name: str) -> ZooEntry:
    """What is known of a shipped model.

    Raises:
        ModelError: no shipped model of that name.
        FileFormatError: a damaged model file, or figures that belong to another file.
    """
    path = _shipped(name)
    header = read_container(path, kind="model").header
    training = header.get("training") or {}
    quantization = header.get("quantization")
    parent = training.get("parent") or {}
    digest = file_sha256(path)
    record = _record(path.with_suffix(FIGURES_SUFFIX), digest)
    card = path.with_suffix(CARD_SUFFIX)
    return ZooEntry(
        name=name,
        recipe="fp32" if quantization is None else str(quantization["recipe"]["name"]),
        dataset=training.get("dataset"),
        labels=training.get("labels"),
        split=training.get("split"),
        seed=training.get("seed"),
        parent=parent.get("name"),
        file=str(path),
        bytes=path.stat().st_size,
        sha256=digest,
        figures=record.get("figures"),
        command=record.get("command"),
        card=str(card) if card.is_file() else None,
    )


def headline_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The headline figures of an evaluation's JSON: MAE in meV and meV/Å, LEE, where and when."""
    return {name: _pick(evaluation, path) for name, path in _FIGURES.items()}


def copy_model(name: str, target: Path) -> list[Path]:
    """Copy a shipped model, with its card, to a file or into a folder, and return what was written.

    Raises:
        ModelError: no shipped model of that name.
        FileFormatError: the target is a file of another suffix.
        WriteError: the file cannot be written; what was there before stays.
    """
    source = _shipped(name)
    output = target / source.name if target.is_dir() else target
    if output.suffix != SUFFIX:
        raise FileFormatError(f"{output}: name a folder, or a file that ends in {SUFFIX}")
    read_container(source, kind="model")
    written = []
    for suffix in (SUFFIX, CARD_SUFFIX):
        part = source.with_suffix(suffix)
        if part.is_file():
            with atomic_path(output.with_suffix(suffix)) as temporary:
                shutil.copyfile(part, temporary)
            written.append(output.with_suffix(suffix))
    return written


def _shipped(name: str) -> Path:
    if name in shipped_models():
        return shipped_file(name)
    resolve_model(name)  # explains a name that nothing has
    raise ModelError(
        f"{name} is a file of your own; shipped are {', '.join(shipped_models())}. "
        f"`equibit inspect {name}` says what it holds"
    )


def _record(path: Path, digest: str) -> Mapping[str, Any]:
    """Figures and command from the file beside a model; empty without one."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        about = record["model_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} does not hold the figures of a model") from error
    if about != digest:
        raise FileFormatError(
            f"{path} is about another model file; ship the model again with its evaluation"
        )
    return dict(record)


def _pick(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree
