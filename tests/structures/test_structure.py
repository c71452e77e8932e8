"""What a structure refuses to be made of."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from equibit.structures import Structure, StructureError

PLACES = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.8]]
FINE: dict[str, Any] = {"numbers": [1, 1], "positions": PLACES}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"numbers": ["H", "H"]}, "numbers are not an array of real numbers"),
        ({"numbers": [1, None]}, "atom 1 has atomic number nan"),
        ({"numbers": [1, 119]}, "atom 1 has atomic number 119; expected 1 to 118"),
        ({"numbers": [1, 1.5]}, "atom 1 has atomic number 1.5"),
        ({"numbers": [[1], [1, 2]]}, "numbers are not an array"),
        ({"numbers": [1 + 0j, 1]}, "numbers are not an array of real numbers"),
        ({"numbers": []}, "at least one atom"),
        ({"positions": [[0, 0, 0], [0, 0]]}, "positions are not an array"),
        ({"positions": [["0", "0", "0"]] * 2}, "positions are not an array of real numbers"),
        ({"positions": np.array(PLACES) * 1j}, "positions are not an array of real numbers"),
        ({"positions": None}, r"positions have shape \(\)"),
        ({"positions": PLACES[:1]}, r"positions have shape \(1, 3\); expected \(2, 3\)"),
        ({"cell": [3, 3, 3]}, r"cell has shape \(3,\)"),
        ({"cell": "cubic"}, "cell are not an array"),
        ({"energy": [1.0, 2.0]}, "energy label has shape"),
        ({"pbc": [True, False]}, r"pbc is \[True, False\]; expected true or false"),
        ({"pbc": "yes"}, "pbc is yes"),
        ({"pbc": [0, 1, 2]}, "pbc is"),
        ({"pbc": True}, "direction a is periodic but its lattice vector is zero"),
    ],
)
def test_what_is_wrong_is_said(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StructureError, match=message):
        Structure(**FINE | wrong)


def test_numbers_and_positions_are_counted_before_they_are_converted() -> None:
    """A billion atoms with the positions of one cost no more than a byte or two each."""
    numbers = np.ones(10**7, np.int8)
    tracemalloc.start()
    with pytest.raises(StructureError, match=r"expected \(10000000, 3\)"):
        Structure(numbers, PLACES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * numbers.nbytes


@pytest.mark.filterwarnings("error")
def test_any_real_numbers_will_do() -> None:
    for kind in (np.float32, np.int8, object, np.dtype(">f8")):
        structure = Structure(np.array([1, 8], kind), np.array(PLACES).astype(kind), pbc=[0, 0, 0])
        assert structure.numbers.dtype == np.int64
        assert structure.positions.dtype == np.float64
    huge = Structure([1], [[0, 0, 0]], cell=np.eye(3) * 1e300, pbc=True)
    assert huge.pbc.all()
