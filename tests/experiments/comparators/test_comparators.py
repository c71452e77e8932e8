"""Networks of other packages answer as ``Potential`` does; those that are absent are skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiments.small import small_model, small_rmd17, small_structures
from torch import Tensor, nn

from equibit import engine
from equibit.experiments.comparators.experiment import Comparators
from equibit.experiments.comparators.networks import (
    ForeignNetwork,
    ForeignPotential,
    Molecules,
    compiled_evaluation,
)
from equibit.experiments.comparators.packages import _triplets
from equibit.experiments.comparators.registry import COMPARATORS, Comparator, find_comparator
from equibit.experiments.comparators.training import (
    ComparatorConfig,
    load_comparator,
    train_comparator,
)
from equibit.experiments.comparators.xtb import XtbPotential
from equibit.experiments.nequip import Nequip
from equibit.structures import ConfigError, FileFormatError, ModelError, Potential, Structure

STRUCTURES = small_structures(24)


class Springs(ForeignNetwork):
    """Learnt springs between atoms, which no package is needed for."""

    def __init__(self, elements: tuple[int, ...], neighbors: float) -> None:
        super().__init__(elements, 3.0)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))

    def raw_energies(self, molecules: Molecules) -> Tensor:
        distance = molecules.edge_vectors.to(self.dtype).norm(dim=-1, keepdim=True)
        heavier = molecules.numbers[molecules.senders].to(self.dtype).unsqueeze(-1) / 8
        pair = self.layers(torch.cat((distance, heavier), -1)).squeeze(-1)
        return pair.new_zeros(len(molecules.numbers)).index_add(0, molecules.receivers, pair)


def relabelled(structure: Structure) -> Structure:
    """With the energy of springs, E = 5 Σ (d − 1 Å)², which ``Springs`` can learn."""
    vectors = structure.positions[None] - structure.positions[:, None]
    lengths = np.linalg.norm(vectors, axis=-1) + np.eye(len(structure))
    stretch = lengths - 1
    forces = 10 * ((stretch / lengths)[..., None] * vectors).sum(1)
    return replace(structure, energy=float(2.5 * (stretch**2).sum()), forces=forces)


@pytest.fixture
def springs(monkeypatch: pytest.MonkeyPatch) -> str:
    entry = Comparator("springs", "numpy", "numpy", Springs, 1e-2, {})
    monkeypatch.setitem(COMPARATORS, "springs", entry)
    return "springs"


def made(name: str) -> ForeignPotential:
    comparator = find_comparator(name)
    torch.manual_seed(0)
    try:
        network = comparator.make((1, 8), 2.0, quick=True)
    except ModelError as error:
        pytest.skip(str(error))
    with torch.no_grad():  # some begin at zero, where nothing could be seen
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return ForeignPotential(network, name)


@pytest.mark.parametrize("name", COMPARATORS)
def test_it_answers_as_a_potential_should(name: str) -> None:
    potential = made(name)
    assert isinstance(potential, Potential)
    together = potential.compute(STRUCTURES[:3])
    for structure, prediction in zip(STRUCTURES, together, strict=False):
        (alone,) = potential.compute([structure])
        assert alone.energy == pytest.approx(prediction.energy, rel=1e-5)
        np.testing.assert_allclose(alone.forces, prediction.forces, rtol=1e-4, atol=1e-5)
        assert prediction.atomic_energies.sum() == pytest.approx(prediction.energy)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turn *= np.linalg.det(turn)
    rotated = replace(STRUCTURES[0], positions=STRUCTURES[0].positions @ turn.T)
    (prediction,) = potential.compute([rotated])
    np.testing.assert_allclose(prediction.forces, together[0].forces @ turn.T, rtol=1e-3, atol=1e-4)
    assert np.abs(together[0].forces).max() > 1e-3, "forces that vanish would show nothing"


@pytest.mark.parametrize("name", COMPARATORS)
def test_forces_are_the_gradient(name: str) -> None:
    potential = made(name)
    step, tolerance = 1e-4, {"rel": 1e-3, "abs": 2e-5}
    if name == "nequip":  # computes in the precision that it was built for
        step, tolerance = 5e-3, {"rel": 0.05, "abs": 1e-3}
    else:
        potential.network.double()
    structure = STRUCTURES[0]
    (prediction,) = potential.compute([structure])
    for atom, axis in ((0, 0), (1, 1)):
        energies = []
        for sign in (1, -1):
            moved = structure.positions.copy()
            moved[atom, axis] += sign * step
            energies.append(potential.compute([replace(structure, positions=moved)])[0].energy)
        numeric = -(energies[0] - energies[1]) / (2 * step)
        assert numeric == pytest.approx(prediction.forces[atom, axis], **tolerance)


def test_what_it_does_not_take(springs: str) -> None:
    potential = made(springs)
    with pytest.raises(ModelError, match="atom 0 is C; the network knows H, O"):
        potential.compute([replace(STRUCTURES[0], numbers=np.array([6, 1, 1]))])
    with pytest.raises(ModelError, match="no stress"):
        potential.compute(STRUCTURES[:1], stress=True)
    crystal = Structure(np.array([8]), np.zeros((1, 3)), cell=5 * np.eye(3), pbc=np.ones(3, bool))
    with pytest.raises(ModelError, match="periodic"):
        potential.compute([crystal])
    assert potential.compute([]) == []


def test_training_lowers_the_error_and_is_not_repeated(springs: str, tmp_path: Path) -> None:
    config = ComparatorConfig(comparator=springs, epochs=30, batch_size=2, ema_decay=0.9)
    structures = [relabelled(structure) for structure in STRUCTURES]
    train, validation = structures[:20], structures[20:]
    untrained = np.mean([np.abs(s.forces).mean() for s in validation])
    first = train_comparator(config, train, validation, tmp_path, data={"dataset": "toy"})
    predictions = first.potential.compute(validation)
    error = np.mean(
        [np.abs(p.forces - s.forces).mean() for p, s in zip(predictions, validation, strict=True)]
    )
    assert error < 0.7 * untrained, (error, untrained)
    assert first.record["epochs"] == 30
    assert first.record["train"] == 20
    assert first.record["core_minutes"] > 0
    date = first.model.stat().st_mtime_ns
    again = train_comparator(config, train, validation, tmp_path, data={})
    assert again.model.stat().st_mtime_ns == date
    assert again.record == first.record
    with pytest.raises(ConfigError, match="other settings"):
        other = config.model_copy(update={"epochs": 31})
        train_comparator(other, train, validation, tmp_path, data={})


def test_an_interrupted_training_goes_on_to_the_same_weights(
    springs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ComparatorConfig(comparator=springs, epochs=6)
    data = (STRUCTURES[:20], STRUCTURES[20:])
    whole = train_comparator(config, *data, tmp_path / "whole", data={})
    monkeypatch.setattr("equibit.experiments.comparators.training._SAVE_EVERY", -1.0)

    def stop(stage: str, done: int, total: int | None) -> None:
        # The state after epoch 2 is kept; epoch 3 is lost.
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_comparator(config, *data, tmp_path / "cut", data={}, progress=stop)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = train_comparator(config, *data, tmp_path / "cut", data={})
    weights = dict(whole.potential.network.state_dict())
    for name, value in resumed.potential.network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_budget_of_time_becomes_epochs(springs: str, tmp_path: Path) -> None:
    config = ComparatorConfig(comparator=springs, core_minutes=0.02)
    trained = train_comparator(config, STRUCTURES[:20], STRUCTURES[20:], tmp_path, data={})
    assert trained.record["epochs"] >= 1
    assert trained.record["core_minutes"] < 0.2


def test_files_that_are_no_comparators(springs: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        load_comparator(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="did you mean 'schnet'"):
        find_comparator("schnett")


def test_compiled_it_gives_the_same(springs: str) -> None:
    potential = made(springs)
    batch = potential.network.batch(STRUCTURES[:1])
    compiled = ForeignPotential(
        potential.network, "compiled", compiled_evaluation(potential.network, batch)
    )
    (expected,), (found,) = (p.compute(STRUCTURES[:1]) for p in (potential, compiled))
    assert found.energy == pytest.approx(expected.energy, abs=1e-5)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-5)


def test_the_experiment_from_training_to_report(
    springs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIBIT_DATA", str(small_rmd17(tmp_path / "data")))
    given = {
        "comparators": springs,
        "models": str(small_model(tmp_path / "ours.safetensors")),
        "runs": tmp_path / "runs",
        "results": tmp_path / "results",
    }
    experiment = Comparators.configured(quick=True, **given)
    assert {stage.kind for stage in experiment.stages()} == {"train", "measure"}
    experiment.run()
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["missing"] == []
    assert report["quick"] is True
    figures = report["data"]["figures"]
    assert figures["springs-seed0"]["structures"] == 5
    assert figures["springs-seed0"]["forces_mae"] > 0
    assert figures["latency"]["springs"] > 0
    assert [entry["package"] for entry in figures["packages"]] == ["equibit", "numpy"]
    if engine.is_built():
        assert figures["ours"]["lee_mean"] < 1e-3
    assert all(claim["verdict"] == "not run" for claim in report["claims"])
    assert all(stage.done for stage in Comparators.configured(quick=True, **given).stages())


def test_a_package_that_is_absent_is_named_with_its_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    experiment = Comparators.configured(
        quick=True, comparators="mace,gfn2-xtb", runs=tmp_path, results=tmp_path / "none"
    )
    assert "pip install --no-deps mace-torch" in experiment.missing()["mace"]
    assert not any(stage.kind == "train" for stage in experiment.stages())
    note = experiment.report().tables[0].note
    assert "mace is not installed" in note
    assert "gfn2-xtb is not installed" in note


def test_nequip_rounded_in_local_frames_keeps_its_symmetry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("nequip")
    monkeypatch.setenv("EQUIBIT_DATA", str(small_rmd17(tmp_path / "data")))
    experiment = Nequip.configured(
        quick=True, recipes="naive-w8a8,w8a8", runs=tmp_path / "runs", results=tmp_path / "results"
    )
    experiment.run()
    figures = json.loads((tmp_path / "results.json").read_text())["data"]["figures"]
    naive, local = figures["naive-w8a8-seed0"], figures["w8a8-seed0"]
    assert local["lee_mean"] < 0.1 * naive["lee_mean"]
    assert 0 < local["forces_to_parent"] < naive["forces_to_parent"]
    assert local["parent_bytes"] > 3.5 * local["bytes"]


def test_triplets_are_pairs_of_edges_that_meet() -> None:
    receivers = torch.tensor([0, 0, 1, 1, 2])
    senders = torch.tensor([1, 2, 0, 2, 1])
    inner, outer = _triplets(receivers, senders)
    found = {
        (int(senders[k]), int(receivers[k]), int(receivers[j]))
        for k, j in zip(inner, outer, strict=True)
        if receivers[k] == senders[j]
    }
    assert len(inner) == len(found)
    assert found == {(2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 1, 2)}


def test_xtb_counts_energies_as_the_labels_do() -> None:
    pytest.importorskip("tblite", reason="tblite is not installed")
    potential = XtbPotential(STRUCTURES[:3])
    predictions = potential.compute(STRUCTURES[:3])
    mean = np.mean([p.energy - s.energy for p, s in zip(predictions, STRUCTURES, strict=False)])
    assert mean == pytest.approx(0, abs=1e-9)
    assert np.abs(predictions[0].forces).max() > 0.1
    assert predictions[0].atomic_energies.sum() == pytest.approx(predictions[0].energy)
    assert isinstance(potential, Potential)
