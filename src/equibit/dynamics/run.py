"""One run of molecular dynamics: steps, trajectory, checkpoints, results."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equibit.dynamics.samples import Drift, Samples, energy_drift
from equibit.dynamics.settings import TRAJECTORIES, DynamicsSettings
from equibit.dynamics.start import (
    ACCELERATION,
    BOLTZMANN,
    Bonds,
    degrees_of_freedom,
    find_bonds,
    initial_velocities,
    masses_of,
)
from equibit.engine import load
from equibit.engine.potential import NativePotential
from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import Record
from equibit.models.shipped import resolve_model
from equibit.storage import atomic_text, read_container, write_container
from equibit.storage.checksum import file_sha256
from equibit.structures.checks import species_index
from equibit.structures.errors import ConfigError, FileFormatError, ModelError
from equibit.structures.formats.streaming import StructureWriter
from equibit.structures.structure import FloatArray, Structure

CHECKPOINT = "checkpoint.safetensors"
RESULT = "dynamics.json"
SAMPLES = "samples.csv"
PICTURE = "dynamics.png"

_STRETCH = 0.25  # seconds of steps between looks at progress and Ctrl-C
_TRIAL_STEPS = 20
_HOTTEST = 5000.0  # K, or ten times the temperature asked for: a run beyond it has exploded


@dataclass(frozen=True)
class Status:
    """Where a run is.

    Attributes:
        step, steps: made and to make.
        time: ps.
        energy: conserved energy relative to the start, in meV per atom.
        temperature: K.
        ns_per_day: of this process so far.
        seconds_left: wall time.
    """

    step: int
    steps: int
    time: float
    energy: float
    temperature: float
    ns_per_day: float
    seconds_left: float


Watcher = Callable[[Status], None]


@dataclass(frozen=True)
class Collapse(Record):
    """The end of a run that went wrong.

    Attributes:
        step: of the last sample before it was noticed, or after.
        time: ps.
        reason: in words.
    """

    step: int
    time: float
    reason: str


@dataclass(frozen=True)
class DynamicsResult(Record):
    """What a run gave.

    Attributes:
        model, recipe: what moved the atoms; outer_model: of the outer force, or None.
        kernels: instruction set.
        n_atoms: atoms.
        threads: that shared each step.
        settings: see ``DynamicsSettings``.
        steps: made.
        time: simulated, in ps.
        drift: of the conserved energy.
        temperature, temperature_deviation: mean and standard deviation over the samples, in K.
        bonds: by kind, the smallest, mean and largest length in Å.
        collapse: None where the system held.
        seconds: wall time; ns_per_day and microseconds_per_step follow from it.
        core_seconds: processor time, what ``seconds`` would be on an idle core per thread.
        resumed: whether an earlier run was taken up.
        trajectory, samples, picture: files.
        provenance: machine and versions.
    """

    model: str
    recipe: str
    outer_model: str | None
    kernels: str
    n_atoms: int
    threads: int
    settings: dict[str, Any]
    steps: int
    time: float
    drift: Drift
    temperature: float
    temperature_deviation: float
    bonds: dict[str, list[float]]
    collapse: Collapse | None
    seconds: float
    core_seconds: float
    ns_per_day: float
    microseconds_per_step: float
    resumed: bool
    trajectory: str
    samples: str
    picture: str | None
    provenance: Provenance


@dataclass(frozen=True)
class Outlook(Record):
    """What a run would do, timed by a few steps.

    Attributes:
        model, outer_model: what would move the atoms.
        n_atoms: atoms.
        picoseconds: to simulate in all.
        steps_done: that an earlier run in the folder has made.
        microseconds_per_step, ns_per_day: measured.
        minutes: expected for what is left.
        frames: of the trajectory.
        megabytes: expected size of the trajectory, in extended XYZ.
        files: that would be written.
    """

    model: str
    outer_model: str | None
    n_atoms: int
    picoseconds: float
    steps_done: int
    microseconds_per_step: float
    ns_per_day: float
    minutes: float
    frames: int
    megabytes: float
    files: tuple[str, ...]


def foresee(
    model: str | os.PathLike[str],
    structure: Structure,
    settings: DynamicsSettings,
    output: str | os.PathLike[str],
    *,
    resume: bool = True,
) -> Outlook:
    """What ``run_dynamics`` would do; writes nothing.

    Raises:
        EquibitError: what ``run_dynamics`` would raise before its first step.
    """
    run = _Run(model, structure, settings, Path(output))
    point = run.saved() if resume else None
    steps_done = 0 if point is None else point.step
    to_make = 0 if point is not None and point.reason is not None else settings.steps - steps_done
    loop = run.loop(run.beginning())
    steps = _TRIAL_STEPS * settings.inner_steps
    loop.run(steps, settings.sample_every)
    start = time.perf_counter()
    loop.run(steps, settings.sample_every)
    per_step = (time.perf_counter() - start) / steps
    frames = settings.steps // settings.frame_every + 1
    return Outlook(
        model=run.potential.info.name,
        outer_model=None if run.outer is None else run.outer.info.name,
        n_atoms=len(structure),
        picoseconds=settings.picoseconds,
        steps_done=steps_done,
        microseconds_per_step=1e6 * per_step,
        ns_per_day=_ns_per_day(settings.timestep, per_step),
        minutes=to_make * per_step / 60,
        frames=frames,
        megabytes=frames * (200 + 185 * len(structure)) / 1e6,
        files=tuple(
            str(Path(output) / name) for name in (run.trajectory.name, SAMPLES, RESULT, PICTURE)
        ),
    )


def run_dynamics(
    model: str | os.PathLike[str],
    structure: Structure,
    settings: DynamicsSettings,
    output: str | os.PathLike[str],
    *,
    resume: bool = True,
    watch: Watcher | None = None,
) -> DynamicsResult:
    """Molecular dynamics of a structure with a model, in the folder ``output``.

    Written there are the trajectory (with energies, forces and momenta), ``samples.csv``,
    ``dynamics.json`` and, where matplotlib is installed, a picture. Interrupted by Ctrl-C or killed,
    the same call goes on from the last checkpoint, to the last bit as if nothing had happened; with
    more steps it goes on from the end of a run in the same way, and until it is through, the files
    of the shorter run stay.

    Velocity Verlet for ``nve``, BAOAB for ``langevin``. With an outer model, r-RESPA: its force
    corrects that of ``model`` every ``inner_steps`` steps, and its energy is the one conserved.

    Args:
        model: what moves the atoms: shipped name, model file or run folder.
        structure: where they start; labels are ignored.
        settings: how long and how.
        output: folder, made where it is missing.
        resume: False starts anew.
        watch: told several times a second where the run is.

    Returns:
        The result; where the system collapsed, up to there.

    Raises:
        ConfigError: the folder holds another run or more steps of this one, or settings do not fit.
        ModelError, FileFormatError: no such model, one that the engine does not run, or a damaged
            file.
        StructureError: coinciding atoms.
        WriteError: a file cannot be written; the checkpoint stays.
    """
    folder = Path(output)
    run = _Run(model, structure, settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in (CHECKPOINT, RESULT):
            (folder / name).unlink(missing_ok=True)
    point = run.saved() or run.beginning()
    point = run.advance(point, watch)
    return run.finish(point)


@dataclass(frozen=True, eq=False)
class _Point:
    """A moment of a run, and what was measured up to it; ``asked`` steps it was begun with."""

    positions: FloatArray
    velocities: FloatArray
    rows: FloatArray
    asked: int
    step: int = 0
    heat: float = 0.0
    frames: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0
    resumed: bool = False
    reason: str | None = None
    done: bool = False


class _Run:
    """The pieces of one run that do not change with time."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        structure: Structure,
        settings: DynamicsSettings,
        folder: Path,
    ) -> None:
        paths = [resolve_model(Path(name)) for name in (model, settings.outer) if name is not None]
        self.potential, *outer = (load(path, kernels=settings.kernels) for path in paths)
        self.outer: NativePotential | None = outer[0] if outer else None
        if self.outer is not None and self.outer.info.elements != self.potential.info.elements:
            raise ModelError("the model and the outer model know different elements")
        self.structure = structure
        self.settings = settings
        self.folder = folder
        self.masses = masses_of(structure)
        self.species = species_index(structure, self.potential.info.elements).astype(np.int32)
        self.bonds: Bonds = find_bonds(structure)
        self.freedom = degrees_of_freedom(structure, settings.ensemble)
        self.digests = [file_sha256(path) for path in paths]

    def physics(self, asked: int) -> dict[str, Any]:
        """What decides how the atoms move, in a run that was begun with so many steps."""
        return self.settings.physics() | {"steps": asked}

    def job(self, asked: int) -> str:
        """Tells one run from another; one that goes on for longer keeps its name."""
        return _digest(self.structure, self.physics(asked), self.digests)

    @property
    def trajectory(self) -> Path:
        return self.folder / TRAJECTORIES[self.settings.trajectory_format]

    def beginning(self) -> _Point:
        velocities = initial_velocities(
            self.structure, self.settings.temperature, self.settings.seed
        )
        return _Point(
            self.structure.positions, velocities, np.zeros((0, 0)), asked=self.settings.steps
        )

    def loop(self, point: _Point) -> Any:
        """The compiled loop, at a point of the run."""
        from equibit.engine import _native  # type: ignore[attr-defined]

        settings, structure = self.settings, self.structure
        hottest = max(_HOTTEST, 10 * settings.temperature)
        try:
            return _native.Dynamics(
                model=self.potential.compiled,
                outer=None if self.outer is None else self.outer.compiled,
                species=self.species,
                cell=None if structure.cell is None else np.ascontiguousarray(structure.cell),
                periodic=structure.pbc.tolist(),
                skin=settings.skin,
                threads=settings.threads,
                masses=self.masses,
                timestep=settings.timestep,
                inner_steps=settings.inner_steps,
                friction=1e-3 * settings.friction if settings.ensemble == "langevin" else 0.0,
                temperature=settings.temperature,
                seed=settings.seed,
                bonds=self.bonds.pairs,
                kinds=self.bonds.kinds,
                shifts=self.bonds.shifts,
                longest=self.bonds.longest,
                most_kinetic=0.5 * BOLTZMANN * max(self.freedom, 1) * hottest,
                positions=np.ascontiguousarray(point.positions),
                velocities=np.ascontiguousarray(point.velocities),
                step=point.step,
                heat=point.heat,
            )
        except self.potential.faults as fault:
            raise self.potential.explained(fault) from None

    def advance(self, point: _Point, watch: Watcher | None) -> _Point:
        """From a point to the end of the run, or to its collapse."""
        writer = StructureWriter(
            self.trajectory, job=self.job(point.asked), resume=point.step > 0, keep=point.frames
        )
        if point.done:
            self._hand_over(point, writer)
            if point.reason is not None or point.step == self.settings.steps:
                return point
            writer.begin_with(self.trajectory)
        settings = self.settings
        loop = self.loop(point)
        rows = [point.rows] if point.step else [loop.sample()]
        frames = point.frames
        begin_step, begin, begin_cores = point.step, time.perf_counter(), time.process_time()
        saved = begin
        unit = settings.inner_steps
        stretch = unit

        def now(**changes: Any) -> _Point:
            return _Point(
                positions=loop.positions,
                velocities=loop.velocities,
                rows=np.concatenate(rows),
                asked=point.asked,
                step=loop.step,
                heat=loop.heat,
                frames=frames,
                seconds=point.seconds + time.perf_counter() - begin,
                core_seconds=point.core_seconds + time.process_time() - begin_cores,
                resumed=point.resumed,
                **changes,
            )

        with writer:
            self._check_frames(writer, frames)
            if frames == 0:
                writer.write(self._frame(loop))
                frames = 1
            held = True
            try:
                while held and loop.step < settings.steps:
                    to_frame = settings.frame_every - loop.step % settings.frame_every
                    steps = min(stretch, to_frame, settings.steps - loop.step)
                    before = time.perf_counter()
                    held, fresh = loop.run(steps, settings.sample_every)
                    after = time.perf_counter()
                    if len(fresh):
                        rows.append(fresh)
                    if held and loop.step % settings.frame_every == 0:
                        writer.write(self._frame(loop))
                        frames += 1
                    speed = steps / max(after - before, 1e-9)
                    stretch = max(1, int(_STRETCH * speed) // unit) * unit
                    if watch is not None:
                        watch(self._status(loop.step, rows, loop.step - begin_step, after - begin))
                    if held and after - saved > settings.checkpoint_seconds:
                        self._save(now())
                        saved = after
            except KeyboardInterrupt:
                # Between a frame's step and its writing, the earlier checkpoint is the one to keep.
                if writer.written == frames == loop.step // settings.frame_every + 1:
                    self._save(now())
                raise
            point = now(done=True, reason=None if held else loop.reason)
            self._save(point)
        return point

    def _hand_over(self, point: _Point, writer: StructureWriter) -> None:
        """Put the trajectory of an ended run in its place where a kill prevented that."""
        found = [name for name in TRAJECTORIES.values() if (self.folder / name).exists()]
        if not writer.part.exists() and found:
            if self.trajectory.name in found:
                return
            writer.begin_with(self.folder / found[0])  # now asked for in another format
        with writer:
            self._check_frames(writer, point.frames)

    def _check_frames(self, writer: StructureWriter, frames: int) -> None:
        if writer.written != frames:
            raise FileFormatError(
                f"the trajectory in {self.folder} has {writer.written} of the {frames} frames that "
                f"{CHECKPOINT} counts on: go on with the --format that it was begun with, or start "
                "afresh (--restart)"
            )

    def _frame(self, loop: Any) -> Structure:
        return replace(
            self.structure,
            positions=loop.positions,
            energy=loop.potential,
            forces=loop.forces,
            stress=None,
            momenta=self.masses[:, None] * loop.velocities / np.sqrt(ACCELERATION),
            info={"step": loop.step, "time_ps": loop.step * self.settings.timestep * 1e-3},
        )

    def _status(
        self, step: int, rows: list[FloatArray], fresh_steps: int, seconds: float
    ) -> Status:
        first, last = rows[0][0], rows[-1][-1]
        energy = (last[0] + last[1] - last[2]) - (first[0] + first[1] - first[2])
        per_step = seconds / max(fresh_steps, 1)
        return Status(
            step=step,
            steps=self.settings.steps,
            time=step * self.settings.timestep * 1e-3,
            energy=1e3 * energy / len(self.structure),
            temperature=last[1] * self._kelvin_per_ev,
            ns_per_day=_ns_per_day(self.settings.timestep, per_step),
            seconds_left=(self.settings.steps - step) * per_step,
        )

    @property
    def _kelvin_per_ev(self) -> float:
        return 2.0 / (BOLTZMANN * self.freedom) if self.freedom else 0.0

    def _save(self, point: _Point) -> None:
        write_container(
            self.folder / CHECKPOINT,
            {
                "positions": np.ascontiguousarray(point.positions),
                "velocities": np.ascontiguousarray(point.velocities),
                "samples": np.ascontiguousarray(point.rows),
                "heat": np.array([point.heat]),
            },
            {
                "kind": "dynamics",
                "job": self.job(point.asked),
                "model": self.potential.info.name,
                "kernels": self.potential.kernels,
                "settings": self.physics(point.asked),
                "step": point.step,
                "frames": point.frames,
                "seconds": point.seconds,
                "core_seconds": point.core_seconds,
                "reason": point.reason,
                "done": point.done,
            },
        )

    def saved(self) -> _Point | None:
        """The last checkpoint of this very run, or None where there is none.

        Raises:
            ConfigError: the folder holds another run, or more steps of this one.
            FileFormatError: a damaged checkpoint.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            if (self.folder / RESULT).exists():
                raise self._other_run()
            return None
        container = read_container(path, kind="dynamics")
        header, tensors = container.header, container.tensors
        try:
            asked = int(header["settings"]["steps"])
            if header["job"] != self.job(asked):
                raise self._other_run(header["settings"])
            if header["step"] > self.settings.steps:
                raise ConfigError(
                    f"{self.folder} holds {header['step']} steps of this run, more than the "
                    f"{self.settings.steps} asked for: ask for as many or more, which goes on from "
                    "there, name another folder, or start afresh (--restart)"
                )
            if header["kernels"] != self.potential.kernels:
                raise ConfigError(
                    f"{path} was computed with the instruction set {header['kernels']}, and this "
                    f"would go on with {self.potential.kernels}, which rounds differently: go on "
                    f"with --kernels {header['kernels']}, or start afresh (--restart)"
                )
            return _Point(
                positions=_vectors(tensors["positions"], len(self.structure)),
                velocities=_vectors(tensors["velocities"], len(self.structure)),
                rows=np.asarray(tensors["samples"], dtype=np.float64),
                asked=asked,
                step=int(header["step"]),
                heat=float(tensors["heat"][0]),
                frames=int(header["frames"]),
                seconds=float(header["seconds"]),
                core_seconds=float(header["core_seconds"]),
                resumed=True,
                reason=header["reason"],
                done=bool(header["done"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise FileFormatError(
                f"{path} is no checkpoint of a run ({error}); start afresh (--restart)"
            ) from error

    def _other_run(self, settings: Mapping[str, Any] | None = None) -> ConfigError:
        other = "other model, structure or settings"
        if settings is not None:
            differences = [
                f"{name} {settings.get(name)} there, {value} here"
                for name, value in self.settings.physics().items()
                if name != "steps" and settings.get(name) != value
            ]
            other = "; ".join(differences) or "other model or structure"
        return ConfigError(
            f"{self.folder} holds another run ({other}): name another folder, or start afresh "
            "(--restart)"
        )

    def finish(self, point: _Point) -> DynamicsResult:
        """Results of a run that ended, and their files."""
        settings = self.settings
        samples = Samples.of_rows(
            point.rows,
            settings.sample_every * settings.timestep * 1e-3,
            self._kelvin_per_ev,
            self.bonds.labels,
        )
        whole = np.isfinite(samples.conserved)
        drift = energy_drift(samples.time[whole], samples.conserved[whole], len(self.structure))
        _write_samples(self.folder / SAMPLES, samples)
        collapse = None
        if point.reason is not None:
            at = point.step * settings.timestep * 1e-3
            collapse = Collapse(point.step, at, point.reason)
        per_step = point.seconds / max(point.step, 1)
        result = DynamicsResult(
            model=self.potential.info.name,
            recipe=self.potential.info.recipe,
            outer_model=None if self.outer is None else self.outer.info.name,
            kernels=self.potential.kernels,
            n_atoms=len(self.structure),
            threads=settings.threads,
            settings=settings.physics(),
            steps=point.step,
            time=point.step * settings.timestep * 1e-3,
            drift=drift,
            temperature=float(samples.temperature[whole].mean()),
            temperature_deviation=float(samples.temperature[whole].std()),
            bonds={
                label: [
                    float(samples.bonds[:, kind, 1].min()),
                    float(samples.bonds[:, kind, 0].mean()),
                    float(samples.bonds[:, kind, 2].max()),
                ]
                for kind, label in enumerate(samples.labels)
            },
            collapse=collapse,
            seconds=point.seconds,
            core_seconds=point.core_seconds,
            ns_per_day=_ns_per_day(settings.timestep, per_step),
            microseconds_per_step=1e6 * per_step,
            resumed=point.resumed,
            trajectory=str(self.trajectory),
            samples=str(self.folder / SAMPLES),
            picture=_draw(
                self.folder / PICTURE, samples, drift, collapse, self.potential.info.name
            ),
            provenance=Provenance.here(),
        )
        with atomic_text(self.folder / RESULT) as file:
            file.write(json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n")
        return result


def _draw(
    path: Path, samples: Samples, drift: Drift, collapse: Collapse | None, title: str
) -> str | None:
    """The picture's path, or None where matplotlib is not installed."""
    try:
        from equibit.dynamics.picture import draw_run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    draw_run(
        path, samples, drift, title=title, reason=None if collapse is None else collapse.reason
    )
    return str(path)


def _write_samples(path: Path, samples: Samples) -> None:
    columns = {
        "time_ps": samples.time,
        "potential_ev": samples.potential,
        "kinetic_ev": samples.kinetic,
        "heat_ev": samples.heat,
        "temperature_k": samples.temperature,
    }
    for kind, label in enumerate(samples.labels):
        for place, name in enumerate(("mean", "min", "max")):
            columns[f"{label.replace('–', '-')}_{name}_angstrom"] = samples.bonds[:, kind, place]
    with atomic_text(path) as file:
        file.write(",".join(columns) + "\n")
        for row in np.stack(list(columns.values()), axis=1).tolist():
            file.write(",".join(map(repr, row)) + "\n")


def _vectors(array: Any, n_atoms: int) -> FloatArray:
    vectors = np.ascontiguousarray(array, dtype=np.float64)
    if vectors.shape != (n_atoms, 3):
        raise ValueError(f"its arrays have shape {vectors.shape}, not ({n_atoms}, 3)")
    return vectors


def _digest(structure: Structure, physics: dict[str, Any], models: list[str]) -> str:
    digest = hashlib.sha256(json.dumps([physics, models], sort_keys=True).encode())
    for array in (structure.numbers, structure.positions, structure.pbc, structure.cell):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _ns_per_day(timestep: float, seconds_per_step: float) -> float:
    return 86400.0 * timestep * 1e-6 / max(seconds_per_step, 1e-12)
