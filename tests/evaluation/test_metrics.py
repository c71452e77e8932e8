"""Errors against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.evaluation.toy import MorsePotential, labelled, molecule

from equibit.evaluation.metrics import (
    Answers,
    ErrorStatistics,
    MagnitudeStatistics,
    compare,
    net_statistics,
)
from equibit.structures import Structure, StructureError

HYDROGEN = Structure([1, 1], [[0, 0, 0], [0.7, 0, 0]], energy=-1.0, forces=np.zeros((2, 3)))
WATER = Structure(
    [8, 1, 1],
    [[0, 0, 0], [1, 0, 0], [0, 1, 0]],
    energy=-2.0,
    forces=[[1.0, 0, 0], [0, 1.0, 0], [-1.0, -1.0, 0]],
)


def test_hand_computed_errors() -> None:
    """Two structures of different size, errors that differ per element and per structure."""
    labels = Answers.of_labels([HYDROGEN, WATER])
    errors = np.zeros((5, 3))
    errors[0, 0], errors[2, 1], errors[4, 2] = 0.003, -0.006, 0.009
    answers = replace(
        labels, energies=labels.energies + np.array([0.004, -0.003]), forces=labels.forces + errors
    )
    result = compare(answers, labels)
    assert result.energy is not None
    assert result.energy.mae == pytest.approx(3.5)
    assert result.energy.rmse == pytest.approx(math.sqrt(12.5))
    assert result.energy.maximum == pytest.approx(4.0)
    assert result.energy.bias == pytest.approx(0.5)
    assert result.energy_centred is not None
    assert result.energy_centred.mae == pytest.approx(3.5)
    assert result.energy_per_atom is not None
    assert result.energy_per_atom.mae == pytest.approx((4 / 2 + 3 / 3) / 2)
    assert result.forces is not None
    assert result.forces.mae == pytest.approx(18 / 15)
    assert result.forces.maximum == pytest.approx(9.0)
    assert result.forces_by_element["O"].mae == pytest.approx(6 / 3)
    assert result.forces_by_element["H"].mae == pytest.approx(12 / 12)
    assert result.force_vectors is not None
    assert result.force_vectors.mean == pytest.approx(18 / 5)
    np.testing.assert_allclose(result.force_mae, [3 / 6, 15 / 9])
    np.testing.assert_allclose(result.force_maximum, [3, 9])


def test_cosine_leaves_out_atoms_without_force() -> None:
    labels = Answers.of_labels([HYDROGEN, WATER])
    turned = replace(labels, forces=np.array([[1.0, 0, 0]] * 5))
    cosine = compare(turned, labels).cosine
    assert cosine is not None
    assert cosine.count == 3
    assert cosine.mean == pytest.approx((1 + 0 - math.sqrt(0.5)) / 3)
    assert cosine.minimum == pytest.approx(-math.sqrt(0.5))


def test_missing_labels_leave_only_what_is_known() -> None:
    bare = replace(WATER, energy=None)
    result = compare(Answers.of_labels([HYDROGEN, WATER]), Answers.of_labels([HYDROGEN, bare]))
    assert result.energy is None
    assert result.forces is not None


def test_different_atoms_are_refused() -> None:
    with pytest.raises(StructureError, match="different atoms"):
        compare(Answers.of_labels([HYDROGEN]), Answers.of_labels([WATER]))


@pytest.mark.parametrize("kind", [ErrorStatistics, MagnitudeStatistics])
def test_nothing_has_no_statistics(kind: type[ErrorStatistics] | type[MagnitudeStatistics]) -> None:
    with pytest.raises(StructureError, match="statistics of nothing"):
        kind.of(np.zeros(0))


def test_tiny_errors_do_not_underflow() -> None:
    assert ErrorStatistics.of([1e-200, -1e-200]).rmse == pytest.approx(1e-200)


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_error_statistics_are_ordered(errors: np.ndarray) -> None:
    result = ErrorStatistics.of(errors)
    slack = 1 + 1e-12
    assert abs(result.bias) <= result.mae * slack + 1e-12
    assert result.mae <= result.rmse * slack
    assert result.rmse <= result.maximum * slack


def test_analytic_forces_conserve_and_a_push_does_not() -> None:
    structure = molecule()
    forces = MorsePotential().compute([structure])[0].forces
    kept = net_statistics([structure], [forces])
    assert kept.force.maximum < 1e-9
    assert kept.torque is not None
    assert kept.torque.maximum < 1e-9
    pushed = net_statistics([structure], [forces + np.array([0.001, 0, 0])])
    assert pushed.force.mean == pytest.approx(6.0)
    twist = np.zeros((6, 3))
    arm = structure.positions[3] - structure.positions.mean(axis=0)
    twist[3] = np.cross([0, 0, 0.001], arm)
    twisted = net_statistics([structure], [forces + twist])
    expected = np.linalg.norm(np.cross(arm, twist[3])) * 1000
    assert twisted.torque is not None
    assert twisted.torque.mean == pytest.approx(expected)


def test_crystals_have_no_torque() -> None:
    crystal = Structure([29], [[0, 0, 0]], cell=3 * np.eye(3), pbc=True)
    assert net_statistics([crystal], [np.zeros((1, 3))]).torque is None


def test_json_is_strict() -> None:
    structures = labelled(MorsePotential(), 3)
    labels = Answers.of_labels(structures)
    text = json.dumps(compare(labels, labels).to_json(), allow_nan=False)
    assert json.loads(text)["forces"]["mae"] == 0.0
