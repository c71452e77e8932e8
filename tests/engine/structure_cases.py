"""Random structures, most of them bad, put to the engine by each of its ways in.

Every case ends in finite numbers or in one of the errors that its way in promises: no crash, no
hang, no other error, no NaN. A case is made from its number alone.

    python -m tests.engine.structure_cases 0 1000     # cases 0 to 999; prints what they came to
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
import time
import warnings
from bisect import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from equibit import Calculator, engine
from equibit.structures import ModelError, Prediction, Structure, StructureError

Generator = np.random.Generator

CORPUS = Path(__file__).resolve().parents[2] / "native" / "fuzz" / "corpus"
CASES = CORPUS / "structure-cases.json"
# A shipped one for its size: edges of tiny models are not reversed in 16-bit floats.
MODELS = ("fp32", "w4a8", "w8a16-degree-two", "so3krates", "ethanol-w4a8")
MEMORY = 4 << 30  # bytes that a process of many cases may have

SPECIAL = [float("nan"), float("inf"), -float("inf"), 1.7e308, -1e200, 1e20, 1e9, 1e5]
SPECIAL += [5e-324, -1e-310, -0.0, 1e-17, 2.0**31, -(2.0**53)]
STRANGE_NUMBERS = [0, -1, 119, 2**31, 2**40, -(2**63), 1.5, float("nan"), "H", None, 8 + 0j, True]


@dataclass(frozen=True)
class Case:
    """One question to the engine, in numbers and words that JSON keeps.

    Attributes:
        model: one of ``MODELS``.
        way: one of ``WAYS``.
        numbers, positions, cell, pbc: as nested lists, however wrong.
        form: what becomes of the lists before they are handed over, one of ``FORMS``.
        stress: whether it is asked for.
        threads: that share the work.
    """

    model: str
    way: str
    numbers: Any
    positions: Any
    cell: Any
    pbc: Any
    form: str
    stress: bool
    threads: int


def _quietly(make: Callable[[], Any]) -> Any:
    with np.errstate(all="ignore"):
        return make()


FORMS: dict[str, Callable[[Any], Any]] = {
    "array": lambda values: np.array(values),
    "list": lambda values: values,
    "float32": lambda values: _quietly(lambda: np.array(values, dtype=np.float32)),
    "objects": lambda values: np.array(values, dtype=object),
    "text": lambda values: np.array(values).astype(str),
    "complex": lambda values: np.array(values, dtype=complex),
    "columns": lambda values: np.asfortranarray(values),
    "strided": lambda values: np.repeat(np.array(values), 2, axis=0)[::2],
    "reversed": lambda values: np.array(values[::-1])[::-1],
    "swapped": lambda values: np.array(values).astype(np.dtype(float).newbyteorder()),
    "frozen": lambda values: np.broadcast_to(np.array(values), np.shape(values)),
}


def make_case(number: int) -> Case:
    """The case of that number."""
    with np.errstate(all="ignore"):
        return _make_case(np.random.default_rng(number))


def _make_case(g: Generator) -> Case:
    n = int(_pick(g, [0, 1, 2, 3, 5, 9, 12, 40, 60, 250], [4, 20, 28, 36, 36, 32, 20, 6, 2, 0.5]))
    numbers: Any = g.choice([1, 6, 8], n).tolist()
    cell, pbc = _cell(g)
    positions: Any = _positions(g, n, cell)
    if n and g.random() < 0.08:
        numbers[int(g.integers(n))] = _pick(g, [9, 26, 118, 2, *STRANGE_NUMBERS])
    if g.random() < 0.04:
        positions = _misshapen(g, positions)
    if g.random() < 0.02:
        numbers = _misshapen(g, numbers)
    if cell is not None and g.random() < 0.04:
        cell = _misshapen(g, cell)
    if g.random() < 0.03:
        pbc = _pick(g, [True, [True], [True] * 4, [], None, "yes", [1, 0, 2], [None] * 3])
    plain = g.random() < 0.85
    return Case(
        model=str(_pick(g, MODELS, [3, 2, 2, 2, 3])),
        way=str(_pick(g, list(WAYS), [8, 5, 2, 2, 1])),
        numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=pbc,
        form="array" if plain else str(_pick(g, list(FORMS))),
        stress=bool(g.random() < 0.3),
        threads=int(_pick(g, [1, 2, 3], [20, 1, 1])),
    )


def _pick(g: Generator, values: Any, weights: Any = None) -> Any:
    if weights is None:
        return values[int(g.integers(len(values)))]
    *bounds, total = accumulate(weights)
    return values[bisect(bounds, g.random() * total)]


def _cell(g: Generator) -> tuple[Any, Any]:
    """Lattice vectors or None, and periodic directions, which often do not go together."""
    kind = str(_pick(g, ["none", "box", "skewed", "small", "thin", "flat", "absent", "special"],
                     [30, 20, 12, 14, 8, 6, 4, 6]))  # fmt: skip
    if kind == "none":
        return None, _pick(g, [[False] * 3, [True, False, False]], [15, 1])
    cell = np.diag(g.uniform(3, 9, 3))
    if kind == "skewed":
        cell = cell + g.uniform(-1, 1, (3, 3)) * 10.0 ** g.uniform(0, 4)
    elif kind == "small":
        cell = cell * 10.0 ** g.uniform(-2, -0.3) + 0.05 * g.normal(size=(3, 3))
    elif kind == "thin":
        cell[int(g.integers(3))] *= 10.0 ** g.uniform(-6, -1)
    elif kind == "flat":
        cell[0] = _pick(g, [2.0, -1.0, 1e-9, 1 + 1e-7]) * cell[1] + _pick(g, [0, 1e-8, 1e-3])
    elif kind == "absent":
        cell[int(g.integers(3))] = 0.0
    elif kind == "special":
        if g.random() < 0.5:
            cell[int(g.integers(3)), int(g.integers(3))] = _pick(g, SPECIAL)
        else:
            cell = cell * _pick(g, [1e-300, 1e-160, 1e-20, 1e6, 1e100, 1e160, 1e300])
    if g.random() < 0.2:
        cell = cell[::-1]  # left-handed
    pbc = _pick(g, [[True] * 3, g.random(3) < 0.5, [False] * 3], [5, 4, 1])
    return cell.tolist(), [bool(p) for p in pbc]


def _positions(g: Generator, n: int, cell: Any) -> Any:
    kind = str(_pick(g, ["gas", "dense", "grid", "line", "cell", "one place"], [8, 3, 5, 2, 3, 1]))
    if kind == "grid":
        side = int(np.ceil(n ** (1 / 3)))
        grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:n]
        r = 1.1 * grid + _pick(g, [0.0, 0.1]) * g.normal(size=(n, 3))
    elif kind == "line":
        r = np.outer(np.arange(n), [1.2, 0, 0])
    elif kind == "cell" and cell is not None:
        r = g.uniform(-2, 3, (n, 3)) @ np.array(cell)
    elif kind == "one place":
        r = np.zeros((n, 3))
    else:
        size = 1.3 * max(n, 1) ** (1 / 3) if kind == "gas" else 0.3 * max(n, 1) ** (1 / 3)
        r = g.uniform(0, 2 * size, (n, 3))
    if n and g.random() < 0.1:
        r[int(g.integers(n)), int(g.integers(3))] = _pick(g, SPECIAL)
    if n > 1 and g.random() < 0.08:  # an atom upon, or almost upon, another, or upon its image
        apart = _pick(g, [0.0, 1e-300, 1e-12, 0.049, 0.051])
        image = 0.0 if cell is None else g.integers(-1, 2, 3) @ np.nan_to_num(np.array(cell))
        r[0] = r[1] + image
        r[0, 0] += apart
    if g.random() < 0.06:
        r = r + _pick(g, [1e3, 1e7, 1e12, 1e17, 1e300])
    return r.tolist()


def _misshapen(g: Generator, values: Any) -> Any:
    """Lists of another length or depth."""
    choice = int(g.integers(7))
    if choice == 0:
        return values[:-1]
    if choice == 1:
        return [values]
    if choice == 2:
        return [row[:2] if isinstance(row, list) else [row] for row in values]
    if choice == 3:  # ragged
        return [*values[:-1], [0.0]]
    if choice == 4:
        return None
    if choice == 5:
        return [x for row in values for x in (row if isinstance(row, list) else [row])]
    return [*values, *values]


@cache
def potential(model: str, threads: int) -> engine.NativePotential:
    """A shipped one, or of a file in the corpus of the model loader's fuzzer."""
    file = CORPUS / "model" / model
    return engine.load(file if file.exists() else model, threads=threads)


SANE = Structure([6, 8, 1], [[0, 0, 0], [1.2, 0.1, 0], [-0.6, 0.9, 0.2]])


@cache
def _sane(model: str) -> float:
    return potential(model, 1).compute([SANE])[0].energy


def _structure(case: Case) -> Structure:
    shape = FORMS[case.form]
    return Structure(
        shape(case.numbers),
        shape(case.positions),
        cell=None if case.cell is None else shape(case.cell),
        pbc=case.pbc,
    )


def _by_potential(case: Case) -> None:
    structure = _structure(case)
    answer = potential(case.model, case.threads)
    (prediction,) = answer.compute([structure], stress=case.stress)
    _check(prediction, len(structure), case.stress)
    (again,) = answer.compute([structure], stress=case.stress)
    assert again.energy == prediction.energy, "a second call gives other bits"
    assert np.array_equal(again.forces, prediction.forces), "a second call gives other bits"


def _by_batch(case: Case) -> None:
    """A good structure on either side answers as alone, or the batch is refused as a whole."""
    structure = _structure(case)
    before, it, after = potential(case.model, case.threads).compute([SANE, structure, SANE])
    _check(it, len(structure), False)
    assert before.energy == after.energy == _sane(case.model), "the batch matters"


def _by_calculator(case: Case) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            atoms = Atoms(case.numbers, case.positions, cell=case.cell, pbc=case.pbc)
    except Exception:
        return  # ASE's own refusal
    atoms.calc = Calculator(potential(case.model, 1))
    assert np.isfinite(atoms.get_potential_energy())
    assert np.isfinite(atoms.get_forces()).all()
    if case.stress:
        assert np.isfinite(atoms.get_stress()).all()


def _by_compiled(case: Case) -> None:
    """Past every check of Python's."""
    shape = FORMS[case.form]
    elements = {1: 0, 6: 1, 8: 2}
    try:
        species = np.array([elements.get(z, 3) for z in case.numbers], dtype=np.int32)
    except TypeError:
        species = shape(case.numbers)
    energies, forces, virial = potential(case.model, 1).compiled.compute(
        species,
        shape(case.positions),
        None if case.cell is None else shape(case.cell),
        case.pbc,
        case.stress,
        case.threads,
    )
    for numbers in (energies,) + ((forces, virial) if case.stress else ()):
        assert np.isfinite(numbers).all(), "not finite"


def _by_dynamics(case: Case) -> None:
    """A few steps in the compiled loop, much too long ones now and then."""
    from equibit.engine import _native  # type: ignore[attr-defined]

    structure = _structure(case)
    species = np.searchsorted([1, 6, 8], structure.numbers).astype(np.int32)
    n = len(structure)
    loop = _native.Dynamics(
        model=potential(case.model, 1).compiled,
        outer=None,
        species=species,
        cell=None if structure.cell is None else np.ascontiguousarray(structure.cell),
        periodic=structure.pbc.tolist(),
        skin=0.5 if case.stress else 0.0,
        threads=case.threads,
        masses=np.full(n, 12.0),
        timestep=0.5 if case.stress else 50.0,
        inner_steps=1,
        friction=0.0,
        temperature=300.0,
        seed=1,
        bonds=np.zeros((0, 2), np.int32),
        shifts=np.zeros((0, 3)),
        kinds=np.zeros(0, np.int32),
        longest=np.zeros(0),
        most_kinetic=1e3,
        positions=np.ascontiguousarray(structure.positions),
        velocities=np.zeros((n, 3)),
        step=0,
        heat=0.0,
    )
    held, rows = loop.run(4, 2)
    if held:
        assert np.isfinite(rows).all(), "not finite"
        assert np.isfinite(loop.positions).all(), "not finite"
        assert np.isfinite(loop.forces).all(), "not finite"
    else:
        assert loop.reason, "no reason"


def _check(prediction: Prediction, n: int, stress: bool) -> None:
    assert prediction.atomic_energies.shape == (n,)
    assert prediction.forces is not None
    assert prediction.forces.shape == (n, 3)
    for numbers in (prediction.energy, prediction.atomic_energies, prediction.forces):
        assert np.isfinite(numbers).all(), "not finite"
    if stress:
        assert prediction.stress is not None
        assert np.isfinite(prediction.stress).all(), "not finite"


PROMISED: tuple[type[Exception], ...] = (StructureError, ModelError, MemoryError)
RAW = (*potential("fp32", 1).faults, ValueError, TypeError, MemoryError)

WAYS: dict[str, tuple[Callable[[Case], None], tuple[type[Exception], ...]]] = {
    "potential": (_by_potential, PROMISED),
    "compiled": (_by_compiled, RAW),
    "batch": (_by_batch, PROMISED),
    "calculator": (_by_calculator, (*PROMISED, PropertyNotImplementedError)),
    "dynamics": (_by_dynamics, (*PROMISED, *RAW)),
}


def attempt(case: Case) -> str:
    """What a case came to: ``finite``, or the error's class and the words that it begins with.

    Raises:
        AssertionError: numbers that are not finite, an error that was not promised, a warning.
    """
    way, promised = WAYS[case.way]
    try:
        with warnings.catch_warnings(action="error"):
            for values in (case.numbers, case.positions, case.cell):
                FORMS[case.form](values)
    except (TypeError, ValueError, OverflowError, Warning):
        case = replace(case, form="list")  # numpy itself refuses that form
    try:
        with warnings.catch_warnings(action="error"):
            way(case)
    except promised as error:
        words = str(error)
        assert 0 < len(words) < 1000, f"a message of {len(words)} characters"
        return f"{type(error).__name__}: {_beginning(words)}"
    return "finite"


def _beginning(words: str) -> str:
    """Of a message, without its numbers."""
    return " ".join("#" if any(c.isdigit() for c in word) else word for word in words.split()[:6])


def kept_cases() -> list[tuple[Case, str]]:
    """Cases of the corpus, and what each comes to."""
    kept = json.loads(CASES.read_text(encoding="utf-8"))
    return [(Case(**case), outcome) for case, outcome in kept]


def main(first: int, count: int) -> int:
    """Cases of consecutive numbers, in this process; what they came to goes to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    outcomes: Counter[str] = Counter()
    slowest = (0.0, first)
    for number in range(first, first + count):
        faulthandler.dump_traceback_later(60, exit=True)
        start = time.perf_counter()
        print(number, file=sys.stderr, flush=True)
        outcomes[attempt(make_case(number))] += 1
        slowest = max(slowest, (time.perf_counter() - start, number))
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"outcomes": dict(outcomes), "slowest": slowest}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
