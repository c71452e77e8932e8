"""Named units of files, and the factors that bring them to Å, eV and eV/Å."""

from __future__ import annotations

from dataclasses import dataclass

from equibit.structures.errors import UnitsError

# CODATA 2018 (Tiesinga et al., Rev. Mod. Phys. 93, 025010, 2021); calories are thermochemical.
_HARTREE = 27.211386245988
_BOHR = 0.529177210903
_MOLE_JOULES = 6.02214076e23 * 1.602176634e-19  # 1 eV in J/mol

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": 4184.0 / _MOLE_JOULES,
    "kJ/mol": 1000.0 / _MOLE_JOULES,
    "Hartree": _HARTREE,
}
LENGTH_UNITS = {"Å": 1.0, "Bohr": _BOHR, "nm": 10.0}

_ENERGY_ALIASES = {
    "kcal/mol": "kcal/mol",
    "kj/mol": "kJ/mol",
    "hartree": "Hartree",
    "ha": "Hartree",
}
_LENGTH_ALIASES = {"å": "Å", "a": "Å", "ang": "Å", "angstrom": "Å", "angstroms": "Å"} | {
    "bohr": "Bohr",
    "a0": "Bohr",
    "nm": "nm",
}


@dataclass(frozen=True)
class Units:
    """The units of one file.

    Forces are in energy/length unless stated: E' = f_E E, r' = f_L r, F' = (f_E/f_L) F and
    σ' = (f_E/f_L³) σ, with E' in eV, r' in Å, F' in eV/Å and σ' in eV/Å³.

    Attributes:
        energy: one of ``ENERGY_UNITS``, or a usual spelling of it.
        length: one of ``LENGTH_UNITS``, or a usual spelling of it.
        force: ``<energy>/<length>``, or None for the quotient of the two above.

    Raises:
        UnitsError: a unit that equibit does not know.
    """

    energy: str = "eV"
    length: str = "Å"
    force: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", _energy_name(self.energy))
        object.__setattr__(self, "length", _length_name(self.length))
        if self.force is not None:
            energy, length = _force_parts(self.force)
            object.__setattr__(self, "force", f"{energy}/{length}")

    @property
    def energy_factor(self) -> float:
        """eV per unit of energy."""
        return ENERGY_UNITS[self.energy]

    @property
    def length_factor(self) -> float:
        """Å per unit of length."""
        return LENGTH_UNITS[self.length]

    @property
    def force_factor(self) -> float:
        """eV/Å per unit of force."""
        if self.force is None:
            return self.energy_factor / self.length_factor
        energy, length = _force_parts(self.force)
        return ENERGY_UNITS[energy] / LENGTH_UNITS[length]

    @property
    def stress_factor(self) -> float:
        """eV/Å³ per energy unit/length unit³."""
        return self.energy_factor / self.length_factor**3

    def __str__(self) -> str:
        force = self.force or f"{self.energy}/{self.length}"
        return f"{self.energy}, {self.length}, {force}"


def parse_units(text: str) -> Units:
    """Read ``energy,length`` or ``energy,length,force``: ``kcal/mol,Å``, ``Hartree,Bohr``.

    Raises:
        UnitsError: another number of parts, or a unit that equibit does not know.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (2, 3) or not all(parts):
        raise UnitsError(
            f"units {text!r}: state energy and length, and forces where they differ, as in "
            "'kcal/mol,Å' or 'Hartree,Å,Hartree/Bohr'"
        )
    return Units(*parts)


def units_of_force(text: str) -> Units:
    """Energy and length units implied by a unit of force such as ``kcal/mol/Å``.

    Raises:
        UnitsError: not ``<energy>/<length>`` of known units.
    """
    return Units(*_force_parts(text))


def _energy_name(name: str) -> str:
    # eV and meV only as spelt: MeV differs from meV by nine orders of magnitude.
    known = name if name in ENERGY_UNITS else _ENERGY_ALIASES.get(name.casefold())
    if name in ("ev", "EV"):
        known = "eV"
    if known is None:
        raise UnitsError(
            f"unknown unit of energy {name!r}; equibit knows {', '.join(ENERGY_UNITS)}"
        )
    return known


def _length_name(name: str) -> str:
    # The Ångström sign (U+212B) folds to the letter å.
    known = _LENGTH_ALIASES.get(name.casefold())
    if known is None:
        raise UnitsError(
            f"unknown unit of length {name!r}; equibit knows {', '.join(LENGTH_UNITS)} "
            "(A and angstrom mean Å)"
        )
    return known


def _force_parts(text: str) -> tuple[str, str]:
    energy, separator, length = text.rpartition("/")
    if not separator:
        raise UnitsError(f"unknown unit of force {text!r}; write it as energy/length, as in eV/Å")
    return _energy_name(energy.strip()), _length_name(length.strip())


INTERNAL_UNITS = Units("eV", "Å")
