"""GFN2-xTB as a ``Potential``: what quantum chemistry without training gives, for scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equibit.datasets.labels import XTB_METHODS, make_labeller
from equibit.structures.errors import ConfigError, ModelError
from equibit.structures.potential import PotentialInfo, Prediction
from equibit.structures.structure import Structure


class XtbPotential:
    """GFN2-xTB of tblite on closed-shell neutral molecules.

    Its energies count from other atoms than those of DFT, so that each is moved by one constant,
    the mean difference to the labels of reference structures.

    Attributes:
        shift: that constant in eV.
    """

    def __init__(self, reference: Sequence[Structure], method: str = "gfn2-xtb") -> None:
        """Fit the constant; structures without energies are passed over.

        Raises:
            ConfigError: no such method.
            DatasetError: tblite is not installed.
        """
        if method not in XTB_METHODS:
            raise ConfigError(f"no method {method!r}: known are {', '.join(XTB_METHODS)}")
        self._method = method
        self._elements = tuple(sorted({int(z) for s in reference for z in s.numbers}))
        self.shift = 0.0
        labelled = [s for s in reference if s.energy is not None]
        if labelled:
            own = [prediction.energy for prediction in self.compute(labelled, forces=False)]
            wanted = [s.energy for s in labelled if s.energy is not None]
            self.shift = float(np.mean(np.subtract(wanted, own)))

    @property
    def info(self) -> PotentialInfo:
        return PotentialInfo(self._method, self._elements, float("inf"), "float64", "none")

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        """Predictions one by one; the energy is shared out evenly, as xTB has no atomic energies.

        Raises:
            ModelError: a periodic structure, or stress.
            DatasetError: an open shell, or no convergence.
        """
        if stress or any(structure.periodic for structure in structures):
            raise ModelError(f"{self._method} is compared on molecules, without stress")
        predictions = []
        for structure in structures:
            label = make_labeller(self._method, structure.numbers).label(structure.positions)
            energy = label.energy + self.shift
            predictions.append(
                Prediction(
                    energy=energy,
                    atomic_energies=np.full(len(structure), energy / len(structure)),
                    forces=label.forces if forces else None,
                )
            )
        return predictions
