"""Geometries of one molecule from molecular dynamics with a cheap potential."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from equibit.structures.errors import DatasetError
from equibit.structures.structure import FloatArray, IntArray, Structure

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

Result = TypeVar("Result")

# Plain names for the molecules of the rMD17 kind that ASE knows only by formula.
ALIASES = {
    "water": "H2O",
    "methane": "CH4",
    "ammonia": "NH3",
    "methanol": "CH3OH",
    "ethanol": "CH3CH2OH",
    "ethane": "C2H6",
    "ethylene": "C2H4",
    "acetylene": "C2H2",
    "formaldehyde": "H2CO",
    "formic acid": "HCOOH",
    "acetaldehyde": "CH3CHO",
    "acetone": "CH3COCH3",
    "acetonitrile": "CH3CN",
    "benzene": "C6H6",
    "pyridine": "C5H5N",
    "furan": "C4H4O",
}

SAMPLERS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}

# A bond counts as broken beyond this multiple of the sum of covalent radii, and two atoms as
# coinciding below the other one; thermal motion at 1000 K stays well between them.
BROKEN_BOND = 1.7
COINCIDING = 0.45
# The kinetic temperature of n atoms fluctuates by sqrt(2/3n); ten times the target is no fluctuation.
EXPLODED = 10.0


@dataclass(frozen=True)
class SamplingSettings:
    """Langevin dynamics of one molecule.

    Attributes:
        sampler: name of the potential that drives the dynamics, a key of ``SAMPLERS``.
        temperature: of the thermostat, in K.
        timestep: in fs; half a femtosecond resolves O–H stretches.
        friction: of the Langevin thermostat, in 1/fs.
        equilibration: time before the first frame, in fs.
        spacing: time between frames, in fs; a friction time or more decorrelates velocities.
        charge: total charge in units of e.
    """

    sampler: str = "gfn2-xtb"
    temperature: float = 500.0
    timestep: float = 0.5
    friction: float = 0.02
    equilibration: float = 1000.0
    spacing: float = 60.0
    charge: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise DatasetError(
                f"unknown sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}"
            )
        for name in ("temperature", "timestep", "friction", "spacing"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise DatasetError(f"{name} must be a positive number, not {value}")
        if not (np.isfinite(self.equilibration) and self.equilibration >= 0):
            raise DatasetError(f"equilibration must not be negative: {self.equilibration}")
        if self.spacing < self.timestep:
            raise DatasetError(
                f"frames {self.spacing} fs apart cannot come from steps of {self.timestep} fs"
            )

    def steps(self, n_frames: int) -> int:
        """Steps of dynamics that ``n_frames`` frames of one trajectory cost."""
        return self._equilibration_steps + n_frames * self._spacing_steps

    @property
    def _equilibration_steps(self) -> int:
        return round(self.equilibration / self.timestep)

    @property
    def _spacing_steps(self) -> int:
        return max(1, round(self.spacing / self.timestep))


def load_molecule(molecule: str | Path) -> Structure:
    """A starting geometry from a file, its first frame, or from the name of a molecule.

    Names are those of ``ase.build.molecule`` (``CH3CH2OH``) or plain ones (``ethanol``).

    Raises:
        DatasetError: neither a file nor a known name, or a periodic structure.
        FileFormatError: an unreadable file.
    """
    path = Path(molecule)
    if path.is_file():
        return _from_file(path)
    if path.suffix or len(path.parts) > 1:
        raise DatasetError(f"there is no file {molecule}; give an xyz file or a molecule's name")
    from ase.build import molecule as build
    from ase.collections import g2

    name = ALIASES.get(str(molecule).lower(), str(molecule))
    if name not in g2.names:
        known = [*ALIASES, *g2.names]
        near = difflib.get_close_matches(str(molecule), known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise DatasetError(
            f"unknown molecule {str(molecule)!r}{hint} Give an xyz file for any other molecule"
        )
    atoms = build(name)
    return Structure(atoms.numbers, atoms.positions)


def _from_file(path: Path) -> Structure:
    from equibit.structures.formats import read_structures

    (structure,) = read_structures(path, index=0)
    if structure.periodic:
        raise DatasetError(
            f"{path} is periodic; `equibit data generate` samples single molecules: drop its cell"
        )
    return Structure(structure.numbers, structure.positions)


def sampler_calculator(settings: SamplingSettings) -> Calculator:
    """The ASE calculator of ``settings.sampler``.

    Raises:
        DatasetError: tblite is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise DatasetError('sampling with xTB needs tblite: pip install "equibit[data]"') from error
    return TBLite(
        method=SAMPLERS[settings.sampler], charge=settings.charge, verbosity=0, cache_api=True
    )


def relax(structure: Structure, settings: SamplingSettings, fmax: float = 0.01) -> Structure:
    """The nearest minimum of the sampler's energy, with every force below ``fmax`` eV/Å.

    Raises:
        DatasetError: the geometry does not relax, or falls apart on the way.
    """
    from ase.optimize import BFGS

    atoms = _atoms(structure, settings)
    if len(structure) > 1:
        optimiser = BFGS(atoms, logfile=None)
        converged = _guarded(lambda: optimiser.run(fmax=fmax, steps=500), "relaxing the geometry")
        if not converged:
            raise DatasetError(
                f"the starting geometry does not relax within 500 steps of {settings.sampler}; "
                "start from a better geometry"
            )
    relaxed = Structure(structure.numbers, atoms.positions)
    problem = broken(structure.numbers, structure.positions, relaxed.positions)
    if problem:
        raise DatasetError(
            f"relaxing with {settings.sampler} changes the molecule: {problem}; "
            "start from a better geometry"
        )
    return relaxed


def sample_trajectory(
    start: Structure,
    n_frames: int,
    settings: SamplingSettings,
    seed: int,
    on_frame: Callable[[int], None] | None = None,
) -> FloatArray:
    """Frames of one Langevin trajectory, exactly representable in float32.

    dv = (F/m − γ v) dt + sqrt(2 γ k_B T / m) dW, from Maxwell–Boltzmann velocities and with the
    centre of mass at rest. Rounding happens here, before labelling, so that a file may store
    positions as float32 and still hold the very geometries that were labelled.

    Args:
        start: a relaxed geometry, see :func:`relax`.
        n_frames: how many frames, ``settings.spacing`` apart.
        seed: of velocities and noise; the same seed gives the same trajectory.
        on_frame: called with the number of frames done, also once after equilibration with 0.

    Returns:
        Positions in Å. Shape: [n_frames, n_atoms, 3].

    Raises:
        DatasetError: the molecule dissociates, explodes, or the sampler fails.
    """
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import Stationary

    rng = np.random.default_rng(seed)
    atoms = _atoms(start, settings)
    spread = np.sqrt(atoms.get_masses() * units.kB * settings.temperature)
    atoms.set_momenta(rng.standard_normal((len(start), 3)) * spread[:, None])
    if len(start) > 1:
        Stationary(atoms)
        atoms.set_constraint(FixCom())
    dynamics = Langevin(
        atoms,
        settings.timestep * units.fs,
        temperature_K=settings.temperature,
        friction=settings.friction / units.fs,
        fixcm=False,
        rng=rng,
    )
    frames = np.empty((n_frames, len(start), 3))
    report = on_frame or (lambda _: None)
    time = 0.0
    for index in range(-1, n_frames):
        steps = settings._equilibration_steps if index < 0 else settings._spacing_steps
        place = f"{settings.temperature:g} K dynamics near {time:.0f} fs"
        _guarded(lambda n=steps: dynamics.run(n), place)  # type: ignore[misc]
        time += steps * settings.timestep
        problem = broken(start.numbers, start.positions, atoms.positions)
        if not problem and atoms.get_temperature() > EXPLODED * settings.temperature:
            problem = f"the kinetic temperature is {atoms.get_temperature():.0f} K"
        if problem:
            raise DatasetError(
                f"the molecule did not survive {place}: {problem}; "
                "lower --temperature or start from another geometry"
            )
        if index >= 0:
            frames[index] = (atoms.positions - atoms.get_center_of_mass()).astype(np.float32)
        report(index + 1)
    return frames


def broken(numbers: IntArray, reference: FloatArray, positions: FloatArray) -> str | None:
    """What is wrong with a geometry against a reference of the same molecule, or None.

    A molecule has dissociated when its covalent graph, drawn with bonds stretched up to
    ``BROKEN_BOND`` times the sum of covalent radii, has more pieces than the reference's; a proton
    that moves from one atom to another is no dissociation.

    Args:
        numbers: atomic numbers. Shape: [n_atoms].
        reference: intact positions in Å. Shape: [n_atoms, 3].
        positions: positions to judge, in Å. Shape: [n_atoms, 3].
    """
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        return f"atom {atom} has no finite position"
    ratio = _distance_ratio(numbers, positions)
    close = np.argwhere(np.triu(ratio < COINCIDING, 1))
    if close.size:
        first, second = (int(a) for a in close[0])
        distance = float(np.linalg.norm(positions[first] - positions[second]))
        return f"atoms {first} and {second} are {distance:.2f} Å apart"
    pieces = _pieces(ratio < BROKEN_BOND)
    before = _pieces(_distance_ratio(numbers, reference) < BROKEN_BOND)
    if pieces.max() > before.max():
        lost = np.flatnonzero(pieces == pieces.max())
        return f"it fell into {pieces.max() + 1} pieces, atoms {lost.tolist()} left it"
    return None


def _distance_ratio(numbers: IntArray, positions: FloatArray) -> FloatArray:
    from ase.data import covalent_radii

    radii = covalent_radii[numbers]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    ratio: FloatArray = distances / (radii[:, None] + radii[None])
    return ratio


def _pieces(bonded: np.ndarray) -> IntArray:
    """The piece every atom belongs to, counted from 0 in order of the lowest atom."""
    n_atoms = len(bonded)
    pieces = np.full(n_atoms, -1, dtype=np.int64)
    for seed in range(n_atoms):
        if pieces[seed] >= 0:
            continue
        label = pieces.max() + 1
        stack = [seed]
        while stack:
            atom = stack.pop()
            if pieces[atom] < 0:
                pieces[atom] = label
                stack.extend(np.flatnonzero(bonded[atom]).tolist())
    return pieces


def _atoms(structure: Structure, settings: SamplingSettings) -> Atoms:
    from ase import Atoms

    atoms = Atoms(numbers=structure.numbers, positions=structure.positions)
    atoms.calc = sampler_calculator(settings)
    return atoms


def _guarded(run: Callable[[], Result], place: str) -> Result:
    """Turn a sampler's own failure, an SCF that diverges for instance, into a message."""
    from ase.calculators.calculator import CalculationFailed

    try:
        return run()
    except (CalculationFailed, RuntimeError, np.linalg.LinAlgError) as error:
        raise DatasetError(
            f"the sampler failed during {place}: {error}; "
            "lower --temperature or start from another geometry"
        ) from error
