"""Sampling of geometries: names and files, broken molecules, Langevin dynamics."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from equibit.datasets.sampling import (
    ALIASES,
    SamplingSettings,
    broken,
    load_molecule,
    relax,
    sample_trajectory,
)
from equibit.structures.errors import DatasetError, FileFormatError
from equibit.structures.structure import Structure

SHORT = SamplingSettings(equilibration=5.0, spacing=2.0)

WATER = """3

O 0.00 0.00 0.12
H 0.00 0.76 -0.48
H 0.00 -0.76 -0.48
"""


@pytest.fixture(scope="module")
def water() -> Structure:
    pytest.importorskip("tblite")
    return relax(load_molecule("water"), SHORT)


def test_every_alias_is_a_molecule():
    assert sorted(load_molecule("ethanol").numbers) == [1] * 6 + [6, 6, 8]
    for name in ALIASES:
        assert len(load_molecule(name)) > 1


def test_reads_a_file(tmp_path):
    path = tmp_path / "water.xyz"
    path.write_text(WATER)
    structure = load_molecule(path)
    assert structure.numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(structure.positions[1], [0.0, 0.76, -0.48])


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "empty"), ("3\n\nO 0 0 0\n", "truncated"), ("a song\n", "is this an XYZ file")],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "bad.xyz"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_molecule(path)
    assert "bad.xyz" in str(caught.value)


def test_a_periodic_file_is_refused(tmp_path):
    path = tmp_path / "cell.xyz"
    path.write_text(
        WATER.replace(
            "\n\n", '\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3 pbc="T T T"\n'
        )
    )
    with pytest.raises(DatasetError, match="periodic"):
        load_molecule(path)


def test_unknown_names_get_a_hint():
    with pytest.raises(DatasetError, match=r"did you mean .*ethanol"):
        load_molecule("ethanoll")
    with pytest.raises(DatasetError, match=r"no file nowhere\.xyz"):
        load_molecule("nowhere.xyz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "amber"}, "unknown sampler"),
        ({"temperature": 0.0}, "temperature"),
        ({"timestep": float("nan")}, "timestep"),
        ({"equilibration": -1.0}, "equilibration"),
        ({"spacing": 0.1}, "cannot come from steps"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(DatasetError, match=message):
        replace(SamplingSettings(), **change)


def test_broken_tells_dissociation_from_vibration():
    ethanol = load_molecule("ethanol")
    numbers, intact = ethanol.numbers, ethanol.positions
    rng = np.random.default_rng(0)
    assert broken(numbers, intact, intact + 0.05 * rng.standard_normal(intact.shape)) is None

    hydrogen = int(np.flatnonzero(numbers == 1)[-1])
    away = intact.copy()
    away[hydrogen] += 5.0
    assert "2 pieces" in broken(numbers, intact, away)

    close = intact.copy()
    close[0] = close[1] + [0.1, 0.0, 0.0]
    assert "atoms 0 and 1 are 0.10" in broken(numbers, intact, close)

    lost = intact.copy()
    lost[4, 2] = np.nan
    assert "atom 4" in broken(numbers, intact, lost)


def test_a_moved_proton_is_no_dissociation():
    numbers = np.array([8, 1, 8])
    before = np.array([[0.0, 0, 0], [1.0, 0, 0], [2.4, 0, 0]])
    after = before.copy()
    after[1, 0] = 1.4
    assert broken(numbers, before, after) is None


def test_trajectories_are_seeded_and_stored_exactly(water):
    first = sample_trajectory(water, 3, SHORT, seed=7)
    again = sample_trajectory(water, 2, SHORT, seed=7)
    other = sample_trajectory(water, 2, SHORT, seed=8)
    assert first.shape == (3, 3, 3)
    np.testing.assert_array_equal(first, first.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(first[:2], again)
    assert np.abs(first[:2] - other).max() > 0.01
    assert np.abs(np.diff(first, axis=0)).max() > 1e-3


def test_relaxing_reaches_the_minimum(water):
    bond = np.linalg.norm(water.positions[1] - water.positions[0])
    assert 0.93 < bond < 0.99


def test_an_exploding_molecule_is_reported(water):
    hot = SamplingSettings(temperature=60_000.0, equilibration=50.0, spacing=20.0)
    with pytest.raises(DatasetError, match="lower --temperature"):
        sample_trajectory(water, 5, hot, seed=0)


def test_a_missing_sampler_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(DatasetError, match=r"equibit\[data\]"):
        relax(load_molecule("water"), SHORT)


@pytest.mark.slow
def test_the_thermostat_holds_its_temperature(water):
    """Potential energies of harmonic modes average k_B T / 2 each: three in water."""
    settings = SamplingSettings(temperature=300.0, equilibration=300.0, spacing=20.0)
    from equibit.datasets.labels import make_labeller

    labeller = make_labeller("gfn2-xtb", water.numbers)
    floor = labeller.label(water.positions).energy
    frames = sample_trajectory(water, 250, settings, seed=1)
    excess = np.mean([labeller.label(frame).energy for frame in frames]) - floor
    assert excess == pytest.approx(1.5 * 8.617333e-5 * 300.0, rel=0.2)
