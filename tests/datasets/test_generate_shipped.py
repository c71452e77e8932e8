"""The set that comes with the package: size, splits, labels that are what they say."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import pytest

from equibit.datasets.labels import make_labeller
from equibit.datasets.sampling import broken
from equibit.structures.formats.npz import ArrayFile, read_npz

RESOURCE = files("equibit.datasets") / "files" / "ethanol-pbe.npz"


@pytest.fixture(scope="module")
def shipped() -> ArrayFile:
    with as_file(RESOURCE) as path:
        return read_npz(path)


def test_it_is_small_and_large_enough(shipped):
    with as_file(RESOURCE) as path:
        assert path.stat().st_size < 1_000_000
    assert len(shipped.splits["train"]) >= 500
    assert len(shipped.splits["test"]) >= 100
    every = np.concatenate([shipped.splits["train"], shipped.splits["test"]])
    assert np.array_equal(np.sort(every), np.arange(len(shipped.structures)))


def test_it_says_where_it_comes_from(shipped):
    meta = shipped.meta
    assert (meta["level"], meta["temperature_K"], meta["licence"]) == ("pbe/def2-svp", 500.0, "MIT")
    assert {"pyscf", "tblite", "ase"} <= set(meta["software"])
    seeds = [trajectory["seed"] for trajectory in meta["trajectories"]]
    assert len(set(seeds)) == len(seeds)


def test_forces_conserve_momentum(shipped):
    """What is left is the noise of the integration grid, half a percent of a typical force."""
    n_frames = len(shipped.structures)
    forces = shipped.structures.forces.reshape(n_frames, -1, 3)
    positions = shipped.structures.positions.reshape(n_frames, -1, 3)
    assert np.linalg.norm(forces.sum(axis=1), axis=-1).max() < 8e-3
    torque = np.cross(positions - positions.mean(axis=1, keepdims=True), forces).sum(axis=1)
    assert np.linalg.norm(torque, axis=-1).max() < 12e-3


def test_geometries_are_ethanol_and_stored_exactly(shipped):
    n_frames = len(shipped.structures)
    positions = shipped.structures.positions.reshape(n_frames, -1, 3)
    numbers = shipped.structures.numbers[: positions.shape[1]]
    assert sorted(numbers.tolist()) == [1] * 6 + [6, 6, 8]
    np.testing.assert_array_equal(positions, positions.astype(np.float32).astype(np.float64))
    assert all(broken(numbers, positions[0], frame) is None for frame in positions)


def test_no_test_frame_resembles_a_training_frame(shipped):
    """Distances between atoms tell geometries apart, however they are turned."""
    n_frames = len(shipped.structures)
    positions = shipped.structures.positions.reshape(n_frames, -1, 3)
    first, second = np.triu_indices(positions.shape[1], 1)
    pairs = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    train, test = pairs[shipped.splits["train"]], pairs[shipped.splits["test"]]
    nearest = min(np.sqrt(np.mean((train - frame) ** 2, axis=-1)).min() for frame in test)
    assert nearest > 0.03


@pytest.mark.slow
def test_labels_can_be_made_again(shipped):
    pytest.importorskip("pyscf")
    n_frames = len(shipped.structures)
    forces = shipped.structures.forces.reshape(n_frames, -1, 3)
    positions = shipped.structures.positions.reshape(n_frames, -1, 3)
    labeller = make_labeller(
        shipped.meta["level"], shipped.structures.numbers[: positions.shape[1]]
    )
    for row in (0, n_frames - 1):
        label = labeller.label(positions[row])
        assert label.energy == pytest.approx(shipped.structures.energies[row], abs=1e-5)
        np.testing.assert_allclose(label.forces, forces[row], atol=1e-4)


@pytest.mark.slow
def test_the_level_is_that_of_rmd17(reference_data):
    pytest.importorskip("pyscf")
    kcal = 0.0433641153
    with np.load(reference_data / "rmd17" / "rmd17_ethanol.npz") as data:
        rows = [10, 2000, 4000]
        numbers, positions = data["nuclear_charges"], data["coords"][rows]
        energies, forces = data["energies"][rows] * kcal, data["forces"][rows] * kcal
    labeller = make_labeller("pbe/def2-svp", numbers)
    labels = [labeller.label(frame) for frame in positions]
    offsets = np.array([label.energy for label in labels]) - energies
    assert abs(offsets.mean()) < 0.005
    assert np.ptp(offsets) < 1e-3
    assert np.abs(np.array([label.forces for label in labels]) - forces).mean() < 5e-4
