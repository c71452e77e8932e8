"""Structures that nobody should compute, and processes in trouble: errors, never crashes or NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.engine.test_model_files import STRUCTURES, kept

from equibit import Calculator, engine
from equibit.structures import ModelError, Structure, StructureError

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def potential() -> engine.NativePotential:
    return engine.load(kept("w4a8"))


def compiled(
    potential: engine.NativePotential,
    positions: object,
    cell: object = None,
    periodic: bool = False,
) -> object:
    """Straight to compiled code, past the checks of ``Structure``."""
    xyz = np.array(positions, dtype=np.float64)
    lattice = None if cell is None else np.array(cell, dtype=np.float64)
    species = np.zeros(len(xyz), np.int32)
    return potential.compiled.compute(species, xyz, lattice, [periodic] * 3, True)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_numbers_that_are_none_are_refused_by_both(
    potential: engine.NativePotential, bad: float
) -> None:
    with pytest.raises(StructureError, match="positions of atom 1"):
        Structure([1, 1], [[0, 0, 0], [bad, 1, 1]])
    with pytest.raises(potential.faults):
        compiled(potential, [[0, 0, 0], [bad, 1, 1]])
    with pytest.raises(potential.faults):
        compiled(potential, [[0, 0, 0], [bad, 1, 1]], 9 * np.eye(3), True)
    with pytest.raises(potential.faults):
        compiled(potential, [[0, 0, 0], [1, 1, 1]], np.full((3, 3), bad), True)


@pytest.mark.parametrize(
    "cell",
    [np.zeros((3, 3)), np.ones((3, 3)), np.diag([9.0, 9.0, 0.0]), 1e-300 * np.eye(3)],
    ids=["nothing", "a line", "a plane", "a point"],
)
def test_cells_without_volume_are_refused(
    potential: engine.NativePotential, cell: np.ndarray
) -> None:
    with pytest.raises(potential.faults):
        compiled(potential, [[0, 0, 0], [1, 1, 1]], cell, True)
    with pytest.raises(StructureError):
        potential.compute([Structure([1, 1], [[0, 0, 0], [1, 1, 1]], cell=cell, pbc=[True] * 3)])


def test_an_absent_cell_is_named() -> None:
    with pytest.raises(StructureError, match="lattice vector"):
        Structure([1, 1], [[0, 0, 0], [1, 1, 1]], pbc=[True, False, False])


@pytest.mark.parametrize("far", [1e6, 1e18, 1e200, 1.7e308])
def test_far_away_is_no_harm(potential: engine.NativePotential, far: float) -> None:
    """Either refused, or the atoms are isolated; memory does not follow the distance."""
    structure = Structure([1, 8, 6], [[0, 0, 0], [far, 0, 0], [-far, 0.5, 0]])
    try:
        (prediction,) = potential.compute([structure])
    except (StructureError, ModelError):
        return
    assert not prediction.forces.any()


def test_arrays_that_do_not_fit_are_refused(potential: engine.NativePotential) -> None:
    network = potential.compiled
    species, positions = np.zeros(3, np.int32), np.zeros((2, 3))
    with pytest.raises(ValueError, match="differ in length"):
        network.compute(species, positions, None, [False] * 3, True)
    with pytest.raises(ValueError, match="species is out of range"):
        network.compute(np.array([0, 7], np.int32), positions, None, [False] * 3, True)
    with pytest.raises(ValueError, match="number of atoms"):
        network.compute(species[:0], positions[:0], None, [False] * 3, True)
    with pytest.raises(ValueError, match="needs a cell"):
        network.compute(species[:2], positions, None, [True] * 3, True)
    for wrong in (positions[:, :2], positions.ravel(), None):
        with pytest.raises(TypeError):
            network.compute(species[:2], wrong, None, [False] * 3, True)


@pytest.mark.parametrize("block", range(4))
def test_random_structures_end_in_finite_numbers_or_a_clear_error(block: int) -> None:
    """The beginning of what ``scripts/fuzz.py`` runs a million of."""
    from tests.engine.structure_cases import attempt, make_case

    outcomes = [attempt(make_case(number)) for number in range(300 * block, 300 * (block + 1))]
    assert 90 < outcomes.count("finite") < 210
    assert len(set(outcomes)) > 20


def test_structures_once_kept_come_to_what_they_did() -> None:
    """One small case of every outcome, and those that found a fault."""
    from tests.engine.structure_cases import attempt, kept_cases

    cases = kept_cases()
    assert len(cases) > 60
    for case, outcome in cases:
        assert attempt(case) == outcome, case


BILLION = """
import numpy as np
from equibit import engine
from equibit.structures import Structure
import resource, sys
potential = engine.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
fine = Structure([1, 1], [[0, 0, 0], [0.8, 0, 0]])
before = potential.compute([fine])[0].energy
try:
    Structure(np.ones(10**9, np.int8), np.zeros((1, 3)))
except (MemoryError, ValueError):
    print("billion refused")
grid = np.stack(np.meshgrid(*[np.arange(46.0)] * 3), -1).reshape(-1, 3)
try:
    potential.compute([Structure(np.ones(len(grid), int), grid)])
except MemoryError:
    print("memory refused")
assert potential.compute([fine])[0].energy == before
print("still right")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_lack_of_memory_is_a_memory_error_and_passes() -> None:
    """A billion atoms, and 97,336 in a gigabyte; afterwards the potential works as before."""
    program = [sys.executable, "-c", BILLION, kept("w4a8")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["billion refused", "memory refused", "still right"]


def test_calculators_in_many_threads_do_not_mix() -> None:
    calculators = {recipe: Calculator(engine.load(kept(recipe))) for recipe in ("fp32", "w4a8")}
    expected = {
        r: [p.energy for p in c.potential.compute(STRUCTURES)] for r, c in calculators.items()
    }

    def work(k: int) -> bool:
        recipe, index = ("fp32", "w4a8")[k % 2], k // 2 % 2
        (prediction,) = calculators[recipe].potential.compute([STRUCTURES[index]])
        return bool(prediction.energy == expected[recipe][index])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_processes_compute_what_their_parent_does(threads: int) -> None:
    """The parent's threads stay with the parent, so that a child has to start its own."""
    potential = engine.load(kept("w4a8"), threads=threads)
    grid = np.stack(np.meshgrid(*[np.arange(6) * 1.7] * 3), -1).reshape(-1, 3)
    large = Structure(np.resize([6, 1, 8], len(grid)), grid)
    expected = potential.compute([large])[0].energy
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            right = potential.compute([large])[0].energy == expected
            os._exit(0 if right else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert potential.compute([large])[0].energy == expected
