"""Packed structures give back what went in, in any order and with any labels missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.structures.strategies import assert_same, structures

from equibit.structures import Structure, StructureError
from equibit.structures.packed import PackedStructures


@given(st.lists(structures(momenta=False), min_size=1, max_size=5), st.data())
def test_pack_select_unpack(originals: list[Structure], data: st.DataObject) -> None:
    packed = PackedStructures.from_structures(originals)
    assert len(packed) == len(originals)
    for one, other in zip(packed, originals, strict=True):
        assert_same(one, other)
    chosen = data.draw(st.lists(st.integers(0, len(originals) - 1), min_size=1, max_size=6))
    for one, k in zip(packed.select(chosen), chosen, strict=True):
        assert_same(one, originals[k])
    assert_same(packed[-1], originals[-1])
    assert len(packed[1:]) == len(originals) - 1


def test_beyond_the_end() -> None:
    packed = PackedStructures.from_structures([Structure([1], [[0, 0, 0]])])
    with pytest.raises(IndexError):
        packed[1]


def test_nothing_to_pack() -> None:
    with pytest.raises(StructureError, match="no structures"):
        PackedStructures.from_structures([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 0, 3])}, "structure 0 has no atoms"),
        ({"numbers": np.array([1, 1, 119])}, "structure 1: atom 1 has atomic number 119"),
        ({"positions": np.full((3, 3), np.inf)}, "structure 0: atom 0 is at"),
        ({"energies": np.zeros(3)}, r"energies have shape \(3,\); expected \(2,\)"),
        ({"cells": np.zeros((3, 3))}, "cells have shape"),
    ],
)
def test_arrays_that_disagree(changes: dict[str, np.ndarray], message: str) -> None:
    arrays = {
        "offsets": np.array([0, 1, 3]),
        "numbers": np.array([1, 1, 1]),
        "positions": np.zeros((3, 3)),
        **changes,
    }
    with pytest.raises(StructureError, match=message):
        PackedStructures(**arrays)
