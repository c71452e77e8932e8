"""Geometries and labels from the parent alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.data import atomic_masses
from tests.evaluation.toy import MorsePotential
from tests.training.toy import waters

from equibit.models.files import load_network, load_potential
from equibit.structures import ConfigError, ModelError, Prediction, Structure, StructureError
from equibit.structures.formats import write_structures
from equibit.training.config import RunConfig
from equibit.training.distillation import (
    BOLTZMANN,
    FORCE_TO_ACCELERATION,
    DistillationConfig,
    distilled_structures,
    sample_langevin,
)
from equibit.training.qat import QuantizationConfig, quantize
from equibit.training.run import TrainingResult


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "start.xyz"
    write_structures(path, [replace(s, energy=None, forces=None) for s in waters(1, noise=0.0)])
    return path


def small(start: Path, **changes: Any) -> DistillationConfig:
    values: dict[str, Any] = {
        "start": start,
        "temperature": 300.0,
        "samples": 20,
        "walkers": 10,
        "spacing": 2,
        "equilibration": 4,
    }
    return DistillationConfig(**values | changes)


def test_samples_are_labelled_by_the_parent(
    trained: TrainingResult, start: Path, tmp_path: Path
) -> None:
    train, validation, record = distilled_structures(
        str(trained.model), small(start), tmp_path / "out"
    )
    assert (len(train), len(validation)) == (18, 2)
    assert "300 K" in record["dataset"]
    assert "FP32 parent" in record["labels"]
    predictions = load_potential(trained.model).compute(train)
    for structure, prediction in zip(train, predictions, strict=True):
        assert structure.energy == pytest.approx(prediction.energy, abs=1e-5)
        np.testing.assert_allclose(structure.forces, prediction.forces, atol=1e-5)
    positions = np.array([s.positions for s in train])
    assert len({array.tobytes() for array in positions}) == 18


def test_samples_are_kept_and_reused_only_for_the_same_question(
    trained: TrainingResult, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    first = distilled_structures(str(trained.model), small(start), output)[0]
    import equibit.training.distillation as module

    monkeypatch.setattr(module, "sample_langevin", None)
    again = distilled_structures(str(trained.model), small(start), output)[0]
    np.testing.assert_allclose(again[3].positions, first[3].positions, atol=1e-8)
    for changes in ({"temperature": 400.0}, {"samples": 30}, {"seed": 1}):
        with pytest.raises(ConfigError, match=r"distilled\.extxyz was sampled with other"):
            distilled_structures(str(trained.model), small(start, **changes), output)
    write_structures(start, waters(1, seed=9))
    with pytest.raises(ConfigError, match="other settings"):
        distilled_structures(str(trained.model), small(start), output)


class Well:
    """E = ½ k Σ |x|² in eV."""

    stiffness = 2.0

    def compute(self, structures: list[Structure], **_: Any) -> list[Prediction]:
        return [
            Prediction(
                0.5 * self.stiffness * float((s.positions**2).sum()),
                0.5 * self.stiffness * (s.positions**2).sum(1),
                -self.stiffness * s.positions,
            )
            for s in structures
        ]


def test_dynamics_thermalise_to_the_temperature() -> None:
    """Equipartition: ⟨|x|²⟩ of a harmonic well is 3 k_B T/k for each atom."""
    temperature = 400.0
    config = DistillationConfig(
        start=Path("unused"),
        temperature=temperature,
        samples=1000,
        walkers=200,
        spacing=10,
        equilibration=150,
        friction=0.1,
    )
    origin = Structure([1], np.zeros((1, 3)))
    samples = sample_langevin(Well(), origin, config)  # type: ignore[arg-type]
    assert len(samples) == 1000
    spread = np.mean([float((s.positions**2).sum()) for s in samples])
    assert spread == pytest.approx(3 * BOLTZMANN * temperature / Well.stiffness, rel=0.1)


def test_constants_are_those_of_the_units() -> None:
    from ase import units

    assert pytest.approx(units.kB, rel=1e-6) == BOLTZMANN
    assert pytest.approx(units.fs**2, rel=1e-6) == FORCE_TO_ACCELERATION
    assert atomic_masses[1] == pytest.approx(1.008)


def test_seeds_decide_the_samples() -> None:
    water = waters(1)[0]
    potential = MorsePotential(depth=2.0, width=2.0, length=1.0)
    runs = [
        sample_langevin(potential, water, small(Path("unused"), seed=seed)) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0][5].positions, runs[1][5].positions)
    assert not np.allclose(runs[0][5].positions, runs[2][5].positions)


def test_runaway_dynamics_stop_with_advice() -> None:
    config = small(Path("unused"), time_step=30.0, equilibration=200)  # beyond Verlet's stability
    with pytest.raises(StructureError, match=r"broke down after \d+ steps; lower the temperature"):
        sample_langevin(Well(), waters(1)[0], config)  # type: ignore[arg-type]


def test_elements_the_parent_never_saw(trained: TrainingResult, tmp_path: Path) -> None:
    start = tmp_path / "start.xyz"
    write_structures(start, [Structure([7, 1], [[0.0, 0, 0], [1.0, 0, 0]])])
    with pytest.raises(ModelError, match="atom 0 is N"):
        distilled_structures(str(trained.model), small(start), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_parent_and_one_geometry_give_a_low_bit_model(
    trained: TrainingResult, start: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train, validation, record = distilled_structures(str(trained.model), small(start), output)
    run = RunConfig(output=output, device="cpu", compile="off", validate_every=1)
    config = QuantizationConfig(
        parent=str(trained.model), epochs=1, scalar_epochs=0, batch_size=6, run=run
    )
    result = quantize(config, train, validation, data=record, progress=False)
    header = load_network(result.model)[1]
    assert header["training"]["labels"] == "the FP32 parent run"
    assert header["training"]["split"] is None
