"""The one description of atoms that every part of equibit reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from equibit.structures.errors import StructureError

if TYPE_CHECKING:
    import numpy.typing as npt

# As numpy.typing.NDArray spells them; importing that would slow down every start.
FloatArray = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
IntArray = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
BoolArray = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]

MAX_ATOMIC_NUMBER = 118


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, an optional periodic cell and optional labels, in Å, eV and eV/Å.

    Arrays are converted to the stated types and validated on construction; labels stay in float64.

    Attributes:
        numbers: atomic numbers. Shape: [n_atoms].
        positions: Cartesian positions in Å. Shape: [n_atoms, 3].
        cell: lattice vectors as rows, in Å, or None. Shape: [3, 3].
        pbc: which lattice directions repeat. Shape: [3].
        energy: total energy label in eV, or None.
        forces: force labels in eV/Å, or None. Shape: [n_atoms, 3].
        stress: stress label in eV/Å³, tension positive (ASE's sign), or None. Shape: [3, 3].
        momenta: of a moment of a dynamics, in ASE's unit √(amu·eV), or None; extended XYZ and ASE's
            formats keep them. Shape: [n_atoms, 3].
        info: whatever else the source said about this structure.

    Raises:
        StructureError: empty system, wrong shape, NaN or infinite number, impossible element, or a
            periodic direction without a lattice vector.
    """

    numbers: IntArray
    positions: FloatArray
    cell: FloatArray | None = None
    pbc: BoolArray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    momenta: FloatArray | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = _array("numbers", self.numbers)
        if numbers.ndim != 1 or numbers.size == 0:
            raise StructureError(
                f"a structure needs at least one atom: numbers have shape {numbers.shape}"
            )
        n_atoms = numbers.size
        positions = _per_atom_vectors("positions", self.positions, n_atoms)
        object.__setattr__(self, "positions", positions)
        broken = False if numbers.dtype.kind in "iu" else numbers != np.rint(numbers)
        wrong = np.flatnonzero(broken | (numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))
        if wrong.size:
            raise StructureError(
                f"atom {wrong[0]} has atomic number {numbers[wrong[0]]:g}; "
                f"expected 1 to {MAX_ATOMIC_NUMBER}"
            )
        object.__setattr__(self, "numbers", numbers.astype(np.int64))
        for name in ("forces", "momenta"):
            vectors = getattr(self, name)
            if vectors is not None:
                object.__setattr__(self, name, _per_atom_vectors(name, vectors, n_atoms))
        if self.energy is not None:
            labels = _real("energy", self.energy)
            if labels.size != 1:
                raise StructureError(
                    f"the energy label has shape {labels.shape}; expected a number"
                )
            energy = float(labels.reshape(()))
            if not np.isfinite(energy):
                raise StructureError(f"the energy label is {energy}; drop or repair this structure")
            object.__setattr__(self, "energy", energy)
        if self.stress is not None:
            object.__setattr__(self, "stress", _matrix("stress", self.stress))
        pbc = _directions(self.pbc)
        object.__setattr__(self, "pbc", pbc)
        if self.cell is not None:
            object.__setattr__(self, "cell", _matrix("cell", self.cell))
        if pbc.any():
            known = np.zeros(3, dtype=bool) if self.cell is None else self.cell.any(axis=1)
            missing = np.flatnonzero(pbc & ~known)
            if missing.size:
                raise StructureError(
                    f"direction {'abc'[missing[0]]} is periodic but its lattice vector is zero; "
                    "set the cell or switch pbc off"
                )

    def __len__(self) -> int:
        return int(self.numbers.size)

    @property
    def periodic(self) -> bool:
        return bool(self.pbc.any())

    def rotated(self, rotation: npt.ArrayLike) -> Structure:
        """The same structure, labels included, turned by an orthogonal matrix. Shape: [3, 3]."""
        matrix = np.asarray(rotation, dtype=np.float64)
        return replace(
            self,
            positions=self.positions @ matrix.T,
            cell=None if self.cell is None else self.cell @ matrix.T,
            forces=None if self.forces is None else self.forces @ matrix.T,
            stress=None if self.stress is None else matrix @ self.stress @ matrix.T,
            momenta=None if self.momenta is None else self.momenta @ matrix.T,
        )


def _array(name: str, values: npt.ArrayLike) -> np.ndarray[Any, Any]:
    """A copy: integers as they are, other real numbers in float64.

    Raises:
        StructureError: what is not real numbers, text and ragged lists among it.
    """
    try:
        array = np.array(values)
        if array.dtype.kind not in "biufO":
            raise TypeError(f"an array of {array.dtype}")
        return array if array.dtype.kind in "iu" else array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise StructureError(f"{name} are not an array of real numbers: {error}") from None


def _real(name: str, values: npt.ArrayLike) -> FloatArray:
    """A copy in float64.

    Raises:
        StructureError: what is not real numbers.
    """
    return _array(name, values).astype(np.float64, copy=False)


def _directions(pbc: Any) -> BoolArray:
    """Three truth values, from three or one.

    Raises:
        StructureError: anything else.
    """
    try:
        array = np.asarray(pbc)
        flags = array.astype(bool)
        if array.dtype.kind not in "biuf" or array.shape not in ((), (1,), (3,)):
            raise ValueError
        if (flags != array).any():
            raise ValueError
    except (TypeError, ValueError):
        raise StructureError(
            f"pbc is {str(pbc)[:80]}; expected true or false, once or for a, b, c"
        ) from None
    return np.broadcast_to(flags, (3,)).copy()


def _per_atom_vectors(name: str, values: npt.ArrayLike, n_atoms: int) -> FloatArray:
    array = _real(name, values)
    if array.shape != (n_atoms, 3):
        raise StructureError(f"{name} have shape {array.shape}; expected ({n_atoms}, 3)")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise StructureError(f"{name} of atom {bad[0]} are {array[bad[0]]}; all must be finite")
    return array


def _matrix(name: str, values: npt.ArrayLike) -> FloatArray:
    array = _real(name, values)
    if array.shape != (3, 3):
        raise StructureError(f"{name} has shape {array.shape}; expected (3, 3)")
    if not np.isfinite(array).all():
        raise StructureError(f"{name} holds NaN or infinity: {array.tolist()}")
    return array
