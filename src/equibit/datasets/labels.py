"""Energies and forces of single geometries from quantum chemistry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from equibit.structures.errors import DatasetError
from equibit.structures.structure import FloatArray, IntArray

# CODATA 2018, the values ASE and PySCF agree on.
HARTREE_EV = 27.211386245988
BOHR_ANGSTROM = 0.529177210903

XTB_METHODS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}

# Pruned grids of level 2 are within 0.02 meV/Å of level 3 on ethanol's forces, in mean.
GRID_LEVEL = 2
SCF_TOLERANCE = 1e-9
# Grid points that hold less density than this, as electrons, go: 15 % of the time, 1e-5 meV/Å.
SMALL_DENSITY = 1e-6


class LabelError(DatasetError):
    """One geometry cannot be labelled: its SCF does not converge."""


@dataclass(frozen=True)
class Label:
    """A labelled geometry.

    Attributes:
        energy: total energy in eV.
        forces: −∂E/∂r in eV/Å. Shape: [n_atoms, 3].
        attempts: how many SCF strategies it took.
    """

    energy: float
    forces: FloatArray
    attempts: int = 1


class Labeller(Protocol):
    """A level of theory for one molecule; each result depends on its own geometry only."""

    def label(self, positions: FloatArray) -> Label:
        """Energy and forces at ``positions`` in Å. Shape: [n_atoms, 3].

        Raises:
            LabelError: no strategy converges.
        """
        ...

    @property
    def description(self) -> dict[str, Any]:
        """Everything the numbers depend on: level, approximations, thresholds."""
        ...

    @property
    def software(self) -> dict[str, str]:
        """Versions of the programs that compute them."""
        ...


def make_labeller(method: str, numbers: IntArray, charge: int = 0) -> Labeller:
    """The labeller of a method: ``gfn2-xtb``, or ``functional/basis`` such as ``pbe/def2-svp``.

    Raises:
        DatasetError: unknown method, an open-shell molecule, or a missing optional package.
    """
    name = method.lower()
    electrons = int(np.sum(numbers)) - charge
    if electrons < 1 or electrons % 2:
        raise DatasetError(
            f"the molecule has {electrons} electrons at charge {charge}; only closed shells "
            "(an even number) are labelled: set --charge"
        )
    if name in XTB_METHODS:
        return XtbLabeller(name, numbers, charge)
    if name.count("/") == 1 and all(name.split("/")):
        return DftLabeller(name, numbers, charge)
    raise DatasetError(
        f"unknown method {method!r}; choose {', '.join(XTB_METHODS)} or functional/basis, "
        "for example pbe/def2-svp"
    )


class XtbLabeller:
    """Semi-empirical tight binding by tblite (Bannwarth et al., JCTC 15, 1652 (2019))."""

    def __init__(self, method: str, numbers: IntArray, charge: int = 0) -> None:
        try:
            from tblite.interface import Calculator
        except ImportError as error:
            raise DatasetError(f'{method} needs tblite: pip install "equibit[data]"') from error
        self._calculator = Calculator
        self._method = method
        self._numbers = np.asarray(numbers)
        self._charge = charge
        self._accuracy = 0.01

    def label(self, positions: FloatArray) -> Label:
        calculator = self._calculator(
            XTB_METHODS[self._method],
            self._numbers,
            np.asarray(positions) / BOHR_ANGSTROM,
            charge=float(self._charge),
        )
        calculator.set("verbosity", 0)
        calculator.set("accuracy", self._accuracy)
        try:
            result = calculator.singlepoint()
        except RuntimeError as error:
            raise LabelError(f"{self._method} does not converge: {error}") from error
        return Label(
            energy=float(result.get("energy")) * HARTREE_EV,
            forces=-np.asarray(result.get("gradient")) * (HARTREE_EV / BOHR_ANGSTROM),
        )

    @property
    def description(self) -> dict[str, Any]:
        return {"level": self._method, "charge": self._charge, "accuracy": self._accuracy}

    @property
    def software(self) -> dict[str, str]:
        return _versions("tblite")


class DftLabeller:
    """Restricted Kohn–Sham with density-fitted Coulomb (and exchange) integrals by PySCF.

    The SCF starts from superposed atomic densities at every geometry, so labels do not depend on
    the order they are computed in. Forces are the analytic gradient without the response of the
    integration grid.
    """

    def __init__(self, method: str, numbers: IntArray, charge: int = 0) -> None:
        try:
            from pyscf import dft, gto
        except ImportError as error:
            raise DatasetError(f'{method} needs PySCF: pip install "equibit[data]"') from error
        self._functional, self._basis = method.split("/")
        self._numbers = [int(number) for number in numbers]
        self._charge = charge
        try:
            hybrid = dft.libxc.is_hybrid_xc(self._functional)
        except (KeyError, ValueError) as error:
            raise DatasetError(
                f"PySCF knows no functional {self._functional!r} (of {method!r})"
            ) from error
        # A pure functional needs no exchange integrals, hence the smaller fitting basis.
        self._auxiliary = "def2-universal-jkfit" if hybrid else "def2-universal-jfit"
        try:
            gto.M(
                atom=[(number, (9.0 * i, 0.0, 0.0)) for i, number in enumerate(self._numbers)],
                basis=self._basis,
                charge=charge,
                verbose=0,
            )
        except (KeyError, RuntimeError) as error:
            raise DatasetError(
                f"PySCF has no basis {self._basis!r} for these elements: {error}"
            ) from error

    def label(self, positions: FloatArray) -> Label:
        for attempt, mean_field in enumerate(self._strategies(positions), start=1):
            energy = mean_field.kernel()
            if not mean_field.converged:
                continue
            gradient = np.asarray(mean_field.nuc_grad_method().kernel())
            if np.isfinite(gradient).all() and np.isfinite(energy):
                return Label(
                    energy=float(energy) * HARTREE_EV,
                    forces=-gradient * (HARTREE_EV / BOHR_ANGSTROM),
                    attempts=attempt,
                )
        raise LabelError(
            f"{self._functional}/{self._basis} does not converge, nor with damping and a level "
            "shift, nor by second-order optimisation"
        )

    def _strategies(self, positions: FloatArray) -> Iterator[Any]:
        yield self._mean_field(positions)
        damped = self._mean_field(positions)
        damped.max_cycle, damped.level_shift, damped.diis_space = 200, 0.2, 12
        damped.damp = 0.3
        yield damped
        yield self._mean_field(positions).newton()

    def _mean_field(self, positions: FloatArray) -> Any:
        from pyscf import dft, gto

        molecule = gto.M(
            atom=list(zip(self._numbers, np.asarray(positions).tolist(), strict=True)),
            basis=self._basis,
            charge=self._charge,
            unit="Angstrom",
            verbose=0,
        )
        mean_field = dft.RKS(molecule, xc=self._functional).density_fit(auxbasis=self._auxiliary)
        mean_field.grids.level = GRID_LEVEL
        mean_field.conv_tol = SCF_TOLERANCE
        mean_field.small_rho_cutoff = SMALL_DENSITY
        mean_field._numint = _caching_integrator()
        # Built here, the fitted integrals are kept; PySCF would otherwise redo them every cycle.
        mean_field.with_df.build()
        return mean_field

    @property
    def description(self) -> dict[str, Any]:
        return {
            "level": f"{self._functional}/{self._basis}",
            "charge": self._charge,
            "reference": "restricted Kohn-Sham",
            "density_fitting": self._auxiliary,
            "grid_level": GRID_LEVEL,
            "grid_response": False,
            "small_rho_cutoff": SMALL_DENSITY,
            "scf_tolerance_hartree": SCF_TOLERANCE,
        }

    @property
    def software(self) -> dict[str, str]:
        return _versions("pyscf")


def _caching_integrator() -> Any:
    """PySCF's numerical integrator, keeping orbital values on the grid between SCF cycles.

    A small molecule's values fit in memory (8 bytes × 4 × orbitals × grid points); evaluating them
    anew in every cycle is a third of the cost.
    """
    from pyscf.dft import numint

    class CachingIntegrator(numint.NumInt):
        _blocks: dict[tuple[int, int, int], list[tuple[Any, ...]]]

        def __init__(self) -> None:
            super().__init__()
            self._blocks = {}

        def block_loop(
            self,
            mol: Any,
            grids: Any,
            nao: int | None = None,
            deriv: int = 0,
            max_memory: float = 2000,
            non0tab: Any = None,
            blksize: int | None = None,
            buf: Any = None,
            **options: Any,
        ) -> Iterator[tuple[Any, ...]]:
            blocks = super().block_loop(
                mol, grids, nao, deriv, max_memory, non0tab, blksize, buf, **options
            )
            megabytes = 8e-6 * 4 * mol.nao * grids.coords.shape[0]
            if deriv != 1 or megabytes > max_memory / 4:
                # The gradient comes last and needs the room; cycles in PySCF keep `self` alive.
                self._blocks = {}
                yield from blocks
                return
            key = (id(mol), id(grids), grids.coords.shape[0])
            if key not in self._blocks:
                # order="K" keeps the layout that the sparse contractions expect.
                self._blocks = {key: [(ao.copy(order="K"), *rest) for ao, *rest in blocks]}
            yield from self._blocks[key]

    return CachingIntegrator()


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
