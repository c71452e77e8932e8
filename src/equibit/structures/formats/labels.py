"""Under which names a file keeps its labels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in a file; None for the usual names of its format.

    Many files keep the reference energy under another name, such as ``REF_energy`` or
    ``dft_energy``; equibit does not guess which of several energies is meant.

    Attributes:
        energy: total energy.
        forces: forces.
        stress: stress.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
