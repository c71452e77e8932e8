"""The measure of symmetry, against potentials whose symmetry is known."""

from __future__ import annotations

import numpy as np
import pytest
from tests.evaluation.toy import MorsePotential, copper, molecule

from equibit.evaluation.equivariance import (
    axis_rotation,
    haar_rotations,
    lie_derivative,
    measure_equivariance,
)
from equibit.structures import ConfigError, ModelError, Structure

MOLECULES = [molecule(seed) for seed in range(3)]


def test_rotations_are_proper_and_seeded() -> None:
    rotations = haar_rotations(50, seed=3)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-14
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    np.testing.assert_array_equal(rotations, haar_rotations(50, seed=3))
    assert not np.allclose(rotations, haar_rotations(50, seed=4))


def test_rotations_are_uniform() -> None:
    """Haar moments: ⟨R⟩ = 0, ⟨R_ab²⟩ = 1/3, ⟨tr R⟩ = 0, ⟨(tr R)²⟩ = 1."""
    rotations = haar_rotations(20_000, seed=0)
    traces = np.trace(rotations, axis1=1, axis2=2)
    np.testing.assert_allclose(rotations.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose((rotations**2).mean(axis=0), 1 / 3, atol=0.01)
    assert traces.mean() == pytest.approx(0.0, abs=0.03)
    assert (traces**2).mean() == pytest.approx(1.0, abs=0.04)


def test_improper_rotations_include_reflections() -> None:
    determinants = np.linalg.det(haar_rotations(200, improper=True))
    assert 60 < (determinants < 0).sum() < 140


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_rotation_turns_the_right_way(axis: int) -> None:
    turned = axis_rotation(axis, 0.3) @ np.eye(3)[(axis + 1) % 3]
    assert turned[axis] == 0.0
    assert turned[(axis + 2) % 3] == pytest.approx(np.sin(0.3))


@pytest.mark.parametrize("improper", [False, True])
def test_analytic_forces_are_at_round_off(improper: bool) -> None:
    result = measure_equivariance(MorsePotential(), MOLECULES, n_rotations=5, improper=improper)
    assert result.forces.maximum < 1e-9
    assert result.energy.maximum < 1e-9
    assert result.forces.count == 3 * 5 * 6
    assert result.energy.count == 15


def test_the_cell_turns_too() -> None:
    """A crystal whose cell stayed behind would see other neighbours."""
    result = measure_equivariance(MorsePotential(), [copper()], n_rotations=3)
    assert result.forces.maximum < 1e-9


def test_single_precision_floor_lies_between() -> None:
    exact = measure_equivariance(MorsePotential(), MOLECULES, n_rotations=4)
    single = measure_equivariance(MorsePotential(dtype="float32"), MOLECULES, n_rotations=4)
    broken = measure_equivariance(MorsePotential(tilt=0.01), MOLECULES, n_rotations=4)
    assert exact.forces.median < 1e-3 * single.forces.median
    assert single.forces.median < 1e-2 * broken.forces.median


def test_known_error_of_a_lab_frame_energy() -> None:
    """E = t Σ x²: for one atom pair, F(RG) − R F(G) = −2t (P R − R P) x with P = diag(1, 0, 0)."""
    pair = Structure([1, 1], [[-0.6, 0.2, 0.1], [0.6, -0.2, -0.1]])
    rotation = haar_rotations(1, seed=11)[0]
    project = np.diag([1.0, 0, 0])
    commutator = project @ rotation - rotation @ project
    expected = 2 * 0.5 * np.linalg.norm(pair.positions @ commutator.T, axis=1) * 1000
    result = measure_equivariance(MorsePotential(tilt=0.5), [pair], n_rotations=1, seed=11)
    assert result.forces.mean == pytest.approx(expected.mean())
    assert result.forces.maximum == pytest.approx(expected.max())


def test_histogram_counts_every_atom_and_rotation() -> None:
    result = measure_equivariance(MorsePotential(tilt=0.01), MOLECULES, n_rotations=4)
    histogram = result.histogram
    assert histogram.counts.sum() + histogram.zeros == 3 * 4 * 6
    centre = np.sqrt(histogram.edges[1:] * histogram.edges[:-1])
    mean = (histogram.counts * centre).sum() / histogram.counts.sum()
    assert mean == pytest.approx(result.forces.mean, rel=0.2)


def test_batch_size_does_not_matter() -> None:
    kwargs = {"n_rotations": 5, "seed": 2}
    one = measure_equivariance(MorsePotential(tilt=0.01), MOLECULES, batch_size=1, **kwargs)
    many = measure_equivariance(MorsePotential(tilt=0.01), MOLECULES, batch_size=64, **kwargs)
    assert one.forces == many.forces


def test_lie_derivative() -> None:
    """Zero for an invariant energy; for t x² independent of a small angle and linear in t."""
    assert lie_derivative(MorsePotential(), MOLECULES).forces.maximum < 1e-7
    small = lie_derivative(MorsePotential(tilt=0.01), MOLECULES, angle=1e-3).forces.mean
    large = lie_derivative(MorsePotential(tilt=0.02), MOLECULES, angle=1e-2).forces.mean
    assert large == pytest.approx(2 * small, rel=1e-3)


def test_lie_derivative_equals_the_commutator() -> None:
    """d/dθ of R(−θ) F(R(θ) x) with F = −2t P x is −2t (P A − A P) x, A the generator."""
    pair = Structure([1, 1], [[-0.6, 0.2, 0.1], [0.6, -0.2, -0.1]])
    project = np.diag([1.0, 0, 0])
    expected = []
    for axis in range(3):
        generator = (axis_rotation(axis, 1e-6) - axis_rotation(axis, -1e-6)) / 2e-6
        commutator = project @ generator - generator @ project
        expected.append(1000 * np.linalg.norm(pair.positions @ commutator.T, axis=1))
    result = lie_derivative(MorsePotential(tilt=0.5), [pair], angle=1e-3)
    assert result.forces.mean == pytest.approx(np.mean(expected), rel=1e-5)


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="0 rotations"):
        measure_equivariance(MorsePotential(), MOLECULES, n_rotations=0)
    with pytest.raises(ConfigError, match="angle"):
        lie_derivative(MorsePotential(), MOLECULES, angle=0.0)
    with pytest.raises(ModelError, match="structure 1: atom 0"):
        measure_equivariance(
            MorsePotential(), [MOLECULES[0], Structure([9], [[0, 0, 0]])], n_rotations=1
        )
