"""The shipped ethanol models on the shipped data: accurate, symmetric, and as their cards say."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from equibit import engine
from equibit.datasets import load_dataset
from equibit.evaluation.description import describe_model
from equibit.evaluation.equivariance import haar_rotations
from equibit.models import load_potential, resolve_model
from equibit.storage.checksum import file_sha256
from equibit.structures import Potential, Structure

# Bounds on the force error in eV/Å against PBE/def2-SVP with density fitting.
MODELS = {"ethanol-fp32": 4.3e-3, "ethanol-w8a8": 4.4e-3, "ethanol-w4a8": 4.5e-3}


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return load_dataset("ethanol-pbe").subset("test")


def runners(model: str) -> dict[str, Potential]:
    found: dict[str, Potential] = {"torch": load_potential(model)}
    if engine.is_built():
        found["engine"] = engine.load(model)
    return found


def forces(potential: Potential, structures: list[Structure]) -> np.ndarray:
    return np.stack([prediction.forces for prediction in potential.compute(structures)])


@pytest.mark.parametrize("model", MODELS)
def test_forces_are_as_good_as_the_labels_ask(model: str, structures: list[Structure]) -> None:
    labels = np.stack([structure.forces for structure in structures])
    for name, potential in runners(model).items():
        assert np.abs(forces(potential, structures) - labels).mean() < MODELS[model], name


@pytest.mark.parametrize("model", MODELS)
def test_rotated_copies_have_rotated_forces(model: str, structures: list[Structure]) -> None:
    rotations = haar_rotations(10)
    for name, potential in runners(model).items():
        for structure, rotation in zip(structures, rotations, strict=False):
            turned = replace(structure, positions=structure.positions @ rotation.T)
            given, expected = forces(potential, [turned, structure])
            assert np.abs(given - expected @ rotation.T).max() < 1e-6, name


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
@pytest.mark.parametrize("model", MODELS)
def test_the_engine_answers_as_torch_does(model: str, structures: list[Structure]) -> None:
    potentials = runners(model)
    expected = forces(potentials["torch"], structures)
    error = forces(potentials["engine"], structures) - expected
    # A code on a tie of rounding may fall to either side.
    assert np.sqrt(np.mean(error**2)) < 1e-3 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("model", MODELS)
def test_a_card_is_of_its_file(model: str) -> None:
    card = (files("equibit.models") / "files" / f"{model}.md").read_text(encoding="utf-8")
    path = files("equibit.models") / "files" / f"{model}.safetensors"
    for sentence in describe_model(str(path)).recipe_words:
        assert f"- {sentence}\n" in card
    stated = re.search(r"SHA-256 of the file: `([0-9a-f]{64})`", card)
    assert stated is not None
    assert stated.group(1) == file_sha256(resolve_model(model))
