"""Trained networks of a molecule's table into the package, with their cards and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equibit.experiments.cards import write_card
from equibit.experiments.ethanol import Cell, Ethanol
from equibit.experiments.stages import read_evaluation
from equibit.models.shipped import SUFFIX
from equibit.models.zoo import FIGURES_SUFFIX, headline_figures
from equibit.storage import atomic_text, read_container, write_container
from equibit.storage.checksum import file_sha256
from equibit.structures.errors import ConfigError


def ship(experiment: Ethanol, folder: Path, *, seed: int, variants: Sequence[str]) -> list[Path]:
    """Copy the rMD17 models of one seed into ``folder`` and write their cards.

    The seed is named by the caller beforehand, never chosen by its test errors.

    Raises:
        ConfigError: a model or its evaluation is not there yet.
    """
    molecule = experiment.config.molecule
    cells = [Cell("rmd17", variant, seed, molecule) for variant in variants]
    evaluations = []
    for cell in cells:
        model, result = experiment.model(cell), experiment.result(cell)
        evaluation = read_evaluation(result, model) if model.is_file() else None
        if evaluation is None:
            raise ConfigError(
                f"{cell.name} cannot be shipped: {model} or its figures in {result} "
                f"are not there or do not belong together; run {experiment.command(cell)}"
            )
        evaluations.append(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for cell, evaluation in zip(cells, evaluations, strict=True):
        name = f"{molecule}-{cell.variant}"
        target = folder / f"{name}{SUFFIX}"
        container = read_container(experiment.model(cell), kind="model")
        write_container(target, container.tensors, {**container.header, "name": name})
        own = _renamed(evaluation, name, file_sha256(target))
        written += [target, write_card(target, own), write_figures(target, own)]
    return written


def write_figures(model: Path, evaluation: Mapping[str, Any]) -> Path:
    """Write what ``equibit models`` tells of a model beside its file, and return where."""
    path = model.with_suffix(FIGURES_SUFFIX)
    record = {
        "model_sha256": evaluation["model_sha256"],
        "command": evaluation.get("command"),
        "figures": headline_figures(evaluation),
    }
    with atomic_text(path) as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def _renamed(evaluation: Mapping[str, Any], name: str, digest: str) -> dict[str, Any]:
    """The same figures for the same tensors under another name."""
    model = evaluation["model"]
    info = {**model["info"], "name": name}
    return {**evaluation, "model": {**model, "info": info}, "model_sha256": digest}
