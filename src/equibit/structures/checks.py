"""What every potential checks before it computes. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equibit.structures.errors import ModelError, StructureError
from equibit.structures.structure import IntArray, Structure


def species_index(structure: Structure, elements: Sequence[int]) -> IntArray:
    """Index of each atom's element in the network's list. Shape: → [n_atoms].

    Raises:
        ModelError: an element that the network never saw.
    """
    known = np.asarray(elements)
    index = np.searchsorted(known, structure.numbers).clip(max=known.size - 1)
    unknown = np.flatnonzero(known[index] != structure.numbers)
    if unknown.size:
        from ase.data import chemical_symbols

        atom = unknown[0]
        names = ", ".join(chemical_symbols[z] for z in elements)
        raise ModelError(
            f"atom {atom} is {chemical_symbols[structure.numbers[atom]]}, which the model never "
            f"saw; it knows {names}"
        )
    return index


def check_cells(structures: Sequence[Structure]) -> None:
    """Refuse to compute a stress where there is none.

    Raises:
        StructureError: a structure without a cell periodic in three directions (named by index).
    """
    for index, structure in enumerate(structures):
        if structure.cell is None or not structure.pbc.all():
            raise StructureError(
                f"structure {index} has no cell periodic in three directions, so it has no stress"
            )
