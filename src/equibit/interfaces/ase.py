"""An ASE calculator over any equibit model, run by the compiled engine where it can be.

Torch is loaded for other models and for float64 only, on the first calculation.

    from equibit.interfaces.ase import Calculator
    atoms.calc = Calculator("ethanol-w4a8")

ASE's units are ours: Å, eV, eV/Å and eV/Å³, tension positive.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator as AseCalculator,
)
from ase.calculators.calculator import (
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from equibit.engine.potential import load_preferred
from equibit.models.shipped import resolve_model
from equibit.structures.errors import ModelError
from equibit.structures.potential import Potential, PotentialInfo, Prediction
from equibit.structures.structure import Structure

_ASE_KEYWORDS = {"restart", "label", "atoms", "directory"}


class Calculator(AseCalculator):
    """Energies, forces and stresses of an equibit model for ASE.

    Stress needs a cell periodic in three directions; asked of anything else, ASE's
    ``PropertyNotImplementedError`` is raised, as its optimisers and barostats expect.

    Args:
        model: name of a shipped model, path to a model file, or a ``Potential``. A file is read on
            the first calculation.
        dtype: ``float32`` or ``float64``, the arithmetic of a model given by name or path; the
            model's own where None.
        kwargs: ASE's own (``atoms``, ``label``, ``directory``).

    Raises:
        TypeError: another keyword.
        ModelError: no such model, or no model at all; on calculation: an element it never saw.
        FileFormatError: on calculation: a damaged file.
        StructureError: on calculation: NaN or coinciding positions.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    name = "equibit"

    def __init__(
        self, model: str | os.PathLike[str] | Potential, *, dtype: str | None = None, **kwargs: Any
    ) -> None:
        # ASE takes whatever else is there as parameters, misspelt ones among them.
        unknown = ", ".join(sorted(kwargs.keys() - _ASE_KEYWORDS))
        if unknown:
            raise TypeError(f"Calculator takes no keyword {unknown}")
        super().__init__(**kwargs)
        self._source: str | os.PathLike[str] | None = None
        self._file: Path | None = None
        self._potential: Potential | None = None
        self._dtype = dtype
        if isinstance(model, str | os.PathLike):
            self._source = model
            self._file = resolve_model(Path(model)).absolute()  # the folder may change until then
        elif isinstance(model, Potential):
            if dtype is not None:
                raise ModelError(
                    f"dtype={dtype!r} belongs to a model given by name or path; "
                    f"this potential computes in {model.info.dtype}"
                )
            self._potential = model
        else:
            raise ModelError(
                f"{type(model).__name__} is no model: give a name, a path or a Potential"
            )

    def __repr__(self) -> str:
        return f"Calculator({str(self._source or self.info.name)!r})"

    @property
    def potential(self) -> Potential:
        """The model, read from its file on first use."""
        if self._potential is None:
            assert self._file is not None
            self._potential = load_preferred(self._file, dtype=self._dtype)
        return self._potential

    @property
    def info(self) -> PotentialInfo:
        """Elements, cutoff, arithmetic and recipe of the model."""
        return self.potential.info

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; energies and forces always, stress where the cell allows it."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structure = structure_from_atoms(self.atoms)
        crystal = structure.cell is not None and bool(structure.pbc.all())
        if "stress" in properties and not crystal:
            raise PropertyNotImplementedError(
                "stress needs a cell that is periodic in three directions; set atoms.cell and "
                "atoms.pbc"
            )
        (prediction,) = self.potential.compute([structure], forces=True, stress=crystal)
        self.results = _results(prediction)


def structure_from_atoms(atoms: Atoms) -> Structure:
    """Numbers, positions, cell and periodicity of ASE atoms, without labels.

    Raises:
        StructureError: no atoms, NaN positions, or a periodic direction without a lattice vector.
    """
    cell = np.asarray(atoms.cell, dtype=np.float64)
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=cell if cell.any() else None,
        pbc=atoms.pbc,
    )


def _results(prediction: Prediction) -> dict[str, Any]:
    results: dict[str, Any] = {
        "energy": prediction.energy,
        "free_energy": prediction.energy,
        "energies": prediction.atomic_energies,
        "forces": prediction.forces,
    }
    if prediction.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)
    return results
