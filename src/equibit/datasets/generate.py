"""Make a labelled set for one molecule: dynamics with a cheap potential, labels from a better one.

The work is cut into trajectories and single labels. Each lands in the parts folder as soon as it is
done, under a key of everything it depends on, so a killed run continues where it stopped, a larger
set reuses a smaller one, and another level of theory reuses the geometries.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import numpy as np

from equibit.datasets.labels import LabelError, make_labeller
from equibit.datasets.sampling import (
    SamplingSettings,
    load_molecule,
    relax,
    sample_trajectory,
)
from equibit.storage.atomic import atomic_bytes
from equibit.structures.errors import DatasetError
from equibit.structures.structure import FloatArray, IntArray, Structure

SPLITS = ("train", "test")
LABELS_FILE = "labels.jsonl"
LICENCES = ("CC0-1.0", "MIT", "CC-BY-4.0")


@dataclass(frozen=True)
class GenerationSettings:
    """What set to make.

    Attributes:
        molecule: a geometry file or a molecule's name, see :func:`load_molecule`.
        method: level of the labels, ``gfn2-xtb`` or ``functional/basis``.
        n_train: training frames.
        n_test: test frames, from trajectories of their own.
        seed: of every trajectory, together with its split and index.
        frames_per_trajectory: the most frames that one trajectory gives.
        sampling: the dynamics.
        licence: stated in the file's ``meta``.
    """

    molecule: str
    method: str = "pbe/def2-svp"
    n_train: int = 1000
    n_test: int = 200
    seed: int = 0
    frames_per_trajectory: int = 64
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    licence: str = "CC0-1.0"

    def __post_init__(self) -> None:
        for name in ("n_train", "n_test", "seed"):
            if getattr(self, name) < 0:
                raise DatasetError(f"{name} must not be negative: {getattr(self, name)}")
        if self.n_train + self.n_test == 0:
            raise DatasetError("nothing to generate: n_train and n_test are both 0")
        if self.frames_per_trajectory < 1:
            raise DatasetError("frames_per_trajectory must be at least 1")
        if self.licence not in LICENCES:
            raise DatasetError(f"unknown licence {self.licence!r}; choose {', '.join(LICENCES)}")


@dataclass(frozen=True)
class Trajectory:
    """One independent run of dynamics: its split, its place among them, its frames and seed."""

    split: str
    index: int
    n_frames: int
    seed: int


@dataclass(frozen=True)
class GenerationState:
    """How far a run is, handed to the progress callback after every change.

    Attributes:
        sampled: frames sampled so far, found ones included.
        labelled: frames labelled so far, found ones included.
        found: frames whose labels were there when the run started, of those sampled so far.
        skipped: frames whose labels do not converge.
        total: frames asked for.
        message: something the user should read, or an empty string.
    """

    sampled: int
    labelled: int
    found: int
    skipped: int
    total: int
    message: str = ""


@dataclass(frozen=True)
class CostEstimate:
    """Seconds on one thread, measured on the relaxed starting geometry."""

    seconds_per_label: float
    seconds_per_step: float
    n_labels: int
    n_steps: int

    def seconds(self, workers: int) -> float:
        """Wall time of the whole set on so many free cores."""
        work = self.n_labels * self.seconds_per_label + self.n_steps * self.seconds_per_step
        return work / workers


@dataclass(frozen=True)
class GeneratedSet:
    """A labelled set of one molecule, in Å, eV and eV/Å.

    Attributes:
        numbers: atomic numbers. Shape: [n_atoms].
        positions: exactly representable in float32. Shape: [n_frames, n_atoms, 3].
        energies: total energies. Shape: [n_frames].
        forces: −∂E/∂r. Shape: [n_frames, n_atoms, 3].
        splits: positions of each split's frames in the arrays above.
        meta: level, software, temperature, seeds, units, licence.
        skipped: frames left out because no label converged.
    """

    numbers: IntArray
    positions: FloatArray
    energies: FloatArray
    forces: FloatArray
    splits: Mapping[str, IntArray]
    meta: Mapping[str, Any]
    skipped: int = 0

    def structures(self) -> list[Structure]:
        """The frames, labels included, in order."""
        return [
            Structure(self.numbers, positions, energy=float(energy), forces=forces)
            for positions, energy, forces in zip(
                self.positions, self.energies, self.forces, strict=True
            )
        ]


ProgressCallback = Callable[[GenerationState], None]


def trajectories(settings: GenerationSettings) -> list[Trajectory]:
    """The independent trajectories of a set, test ones spread among the training ones.

    Seeds depend on seed, split and index alone, so the first trajectories of a larger set are those
    of a smaller one.
    """
    planned: list[tuple[float, Trajectory]] = []
    for split_index, (split, n_frames) in enumerate(
        zip(SPLITS, (settings.n_train, settings.n_test), strict=True)
    ):
        count = math.ceil(n_frames / settings.frames_per_trajectory)
        for index in range(count):
            share = n_frames // count + (index < n_frames % count)
            sequence = np.random.SeedSequence([settings.seed, split_index, index])
            seed = int(sequence.generate_state(1, np.uint64)[0])
            planned.append(((index + 0.5) / count, Trajectory(split, index, share, seed)))
    return [trajectory for _, trajectory in sorted(planned, key=lambda pair: pair[0])]


def estimate_cost(settings: GenerationSettings) -> CostEstimate:
    """Relax the molecule, label it once and time both the label and a few steps of dynamics.

    Raises:
        DatasetError: whatever would stop the run itself at its start.
    """
    given = load_molecule(settings.molecule)
    labeller = make_labeller(settings.method, given.numbers, settings.sampling.charge)
    start = relax(given, settings.sampling)
    began = time.process_time()
    labeller.label(start.positions)
    labelled = time.process_time()
    probe = SamplingSettings(
        **{
            **asdict(settings.sampling),
            "equilibration": 0.0,
            "spacing": 10 * settings.sampling.timestep,
        }
    )
    sample_trajectory(start, 1, probe, seed=0)
    sampled = time.process_time()
    planned = trajectories(settings)
    return CostEstimate(
        seconds_per_label=labelled - began,
        seconds_per_step=(sampled - labelled) / probe.steps(1),
        n_labels=settings.n_train + settings.n_test,
        n_steps=sum(settings.sampling.steps(trajectory.n_frames) for trajectory in planned),
    )


def generate(
    settings: GenerationSettings,
    parts: str | os.PathLike[str],
    *,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> GeneratedSet:
    """Sample and label a set on ``workers`` processes of one thread each, reusing what is in ``parts``.

    Frames whose SCF does not converge are left out and counted; a repeated run tries them again.

    Args:
        settings: what to make.
        parts: folder of finished trajectories and labels; made when absent.
        workers: processes.
        progress: called with a :class:`GenerationState` after every change.

    Raises:
        DatasetError: unusable molecule or method, dissociation, or no label converged at all.
    """
    if workers < 1:
        raise DatasetError(f"workers must be at least 1, not {workers}")
    folder = Path(parts)
    given = load_molecule(settings.molecule)
    labeller = make_labeller(settings.method, given.numbers, settings.sampling.charge)
    start = relax(given, settings.sampling)
    _make_folder(folder)
    run = _Run(
        settings, folder, given, start, _key(labeller.description), progress or (lambda _: None)
    )
    with _single_threads(), _pool(workers, settings, start) as pool:
        run.work(pool, workers)
    return run.collect(labeller.description, labeller.software)


class _Run:
    """The state of one call of :func:`generate`; only this process writes to the parts folder."""

    def __init__(
        self,
        settings: GenerationSettings,
        folder: Path,
        given: Structure,
        start: Structure,
        level_key: str,
        progress: ProgressCallback,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.given = given
        self.start = start
        self.level_key = level_key
        self.progress = progress
        self.planned = trajectories(settings)
        self.frames: dict[Trajectory, FloatArray] = {}
        self.labels = dict(_read_labels(folder / LABELS_FILE))
        self.skipped: set[str] = set()
        self.found = 0

    def work(self, pool: ProcessPoolExecutor, workers: int) -> None:
        waiting = deque(self.planned)
        unlabelled: deque[FloatArray] = deque()
        running: dict[Future[Any], Trajectory | FloatArray] = {}
        self._report()
        try:
            while waiting or unlabelled or running:
                while len(running) < workers and (waiting or unlabelled):
                    # Labels first: what is sampled becomes useful before more is sampled.
                    if unlabelled:
                        positions = unlabelled.popleft()
                        running[pool.submit(_label, positions)] = positions
                        continue
                    trajectory = waiting.popleft()
                    known = self._read_frames(trajectory)
                    if known is None:
                        running[pool.submit(_sample, trajectory)] = trajectory
                    else:
                        unlabelled.extend(self._accept(trajectory, known))
                done, _ = wait(running, return_when=FIRST_COMPLETED) if running else ((), None)
                for future in done:
                    job = running.pop(future)
                    if isinstance(job, Trajectory):
                        frames = future.result()
                        self._write_frames(job, frames)
                        unlabelled.extend(self._accept(job, frames))
                    else:
                        self._finish_label(job, future)
        except BrokenProcessPool as error:
            raise DatasetError(
                "a worker process died, perhaps for lack of memory; repeat the command with fewer "
                "--workers to continue from what is done"
            ) from error

    def _accept(self, trajectory: Trajectory, frames: FloatArray) -> list[FloatArray]:
        """Take a trajectory's frames and say which of them still lack a label."""
        self.frames[trajectory] = frames
        missing = [positions for positions in frames if self._key(positions) not in self.labels]
        self.found += len(frames) - len(missing)
        self._report()
        return missing

    def _finish_label(self, positions: FloatArray, future: Future[Any]) -> None:
        key = self._key(positions)
        try:
            label = future.result()
        except LabelError as error:
            self.skipped.add(key)
            self._report(f"a frame is left out: {error}")
            return
        row = {
            "key": key,
            "energy": label.energy,
            "forces": label.forces.tolist(),
            "attempts": label.attempts,
        }
        with (self.folder / LABELS_FILE).open("a", encoding="utf-8") as file:
            # A leading line end keeps a line that a kill cut short from spoiling this one.
            file.write("\n" + json.dumps(row) + "\n")
        self.labels[key] = (label.energy, label.forces)
        self._report()

    def _key(self, positions: FloatArray) -> str:
        digest = hashlib.sha256(self.level_key.encode())
        digest.update(np.ascontiguousarray(self.start.numbers, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(positions, dtype="<f8").tobytes())
        return digest.hexdigest()

    def _frames_path(self, trajectory: Trajectory) -> Path:
        key = _key(
            {
                "sampling": asdict(self.settings.sampling),
                "numbers": self.start.numbers.tolist(),
                "start": self.given.positions.tolist(),
                "seed": trajectory.seed,
            }
        )
        return self.folder / f"{trajectory.split}-{trajectory.index:03d}-{key[:12]}.npy"

    def _read_frames(self, trajectory: Trajectory) -> FloatArray | None:
        path = self._frames_path(trajectory)
        if not path.exists():
            return None
        try:
            frames = np.load(path, allow_pickle=False).astype(np.float64)
        except (ValueError, EOFError, OSError):
            return None
        if frames.ndim != 3 or frames.shape[1:] != (len(self.start), 3):
            return None
        return frames[: trajectory.n_frames] if len(frames) >= trajectory.n_frames else None

    def _write_frames(self, trajectory: Trajectory, frames: FloatArray) -> None:
        with atomic_bytes(self._frames_path(trajectory)) as file:
            np.save(file, frames.astype(np.float32), allow_pickle=False)

    def _report(self, message: str = "") -> None:
        sampled = sum(len(frames) for frames in self.frames.values())
        labelled = sum(
            self._key(positions) in self.labels
            for frames in self.frames.values()
            for positions in frames
        )
        self.progress(
            GenerationState(
                sampled=sampled,
                labelled=labelled,
                found=self.found,
                skipped=len(self.skipped),
                total=self.settings.n_train + self.settings.n_test,
                message=message,
            )
        )

    def collect(self, description: Mapping[str, Any], software: Mapping[str, str]) -> GeneratedSet:
        positions: list[FloatArray] = []
        energies: list[float] = []
        forces: list[FloatArray] = []
        splits: dict[str, list[int]] = {split: [] for split in SPLITS}
        ordered = sorted(self.frames, key=lambda t: (SPLITS.index(t.split), t.index))
        for trajectory in ordered:
            for frame in self.frames[trajectory]:
                label = self.labels.get(self._key(frame))
                if label is None:
                    continue
                splits[trajectory.split].append(len(energies))
                positions.append(frame)
                energies.append(label[0])
                forces.append(label[1])
        if not energies:
            raise DatasetError(
                f"no frame could be labelled with {self.settings.method}; try another method or a "
                "lower temperature"
            )
        return GeneratedSet(
            numbers=self.start.numbers,
            positions=np.stack(positions),
            energies=np.array(energies),
            forces=np.stack(forces),
            splits={split: np.array(rows, dtype=np.int64) for split, rows in splits.items()},
            meta=_meta(self.settings, ordered, description, software),
            skipped=len(self.skipped),
        )


def _meta(
    settings: GenerationSettings,
    ordered: list[Trajectory],
    description: Mapping[str, Any],
    software: Mapping[str, str],
) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    versions = dict(software)
    for package in ("ase", "tblite"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "molecule": Path(settings.molecule).name,
        "level": description["level"],
        "label_settings": dict(description),
        "software": versions,
        "temperature_K": settings.sampling.temperature,
        "sampler": settings.sampling.sampler,
        "sampling": asdict(settings.sampling),
        "seed": settings.seed,
        "trajectories": [asdict(trajectory) for trajectory in ordered],
        "energy": "total electronic energy",
        "date": datetime.now(UTC).date().isoformat(),
        "licence": settings.licence,
    }


@dataclass(frozen=True)
class SetFigures:
    """What a glance at a set should show, in eV and eV/Å unless named otherwise.

    Attributes:
        n_train: training frames.
        n_test: test frames.
        energy_range: highest less lowest energy.
        force_rms: root mean square over force components.
        force_max: largest force component.
        net_force_max_mev: largest |Σ_i F_i| of a frame, in meV/Å; labels' numerical noise.
        net_torque_max_mev: largest |Σ_i (r_i − r̄) × F_i| of a frame, in meV.
    """

    n_train: int
    n_test: int
    energy_range: float
    force_rms: float
    force_max: float
    net_force_max_mev: float
    net_torque_max_mev: float


def describe(generated: GeneratedSet) -> SetFigures:
    """Ranges of a set's labels, and how well they conserve momentum."""
    forces = generated.forces
    centred = generated.positions - generated.positions.mean(axis=1, keepdims=True)
    torque = np.cross(centred, forces).sum(axis=1)
    return SetFigures(
        n_train=len(generated.splits["train"]),
        n_test=len(generated.splits["test"]),
        energy_range=float(np.ptp(generated.energies)),
        force_rms=float(np.sqrt(np.mean(forces**2))),
        force_max=float(np.abs(forces).max()),
        net_force_max_mev=1e3 * float(np.linalg.norm(forces.sum(axis=1), axis=-1).max()),
        net_torque_max_mev=1e3 * float(np.linalg.norm(torque, axis=-1).max()),
    )


def write_set(generated: GeneratedSet, path: str | os.PathLike[str]) -> None:
    """Write a set as npz, or as extended XYZ when the name ends in ``.xyz`` or ``.extxyz``.

    The npz is in equibit's own layout: ``z`` [n_atoms], ``R`` [m, n_atoms, 3] Å, ``E`` [m] eV, ``F``
    [m, n_atoms, 3] eV/Å, ``split_train``, ``split_test`` and ``meta`` (JSON), without pickles. In
    extended XYZ each frame states its split.

    Raises:
        DatasetError: another suffix.
        WriteError: the file cannot be written.
    """
    from equibit.structures.formats import write_structures
    from equibit.structures.formats.npz import write_npz

    check_output(path)
    structures = generated.structures()
    if Path(path).suffix == ".npz":
        write_npz(path, structures, splits=generated.splits, meta=generated.meta)
        return
    level = generated.meta["level"]
    marked = [
        replace(structures[row], info={"split": split, "level": level})
        for split, rows in generated.splits.items()
        for row in rows
    ]
    write_structures(path, marked)


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a name whose suffix :func:`write_set` cannot serve, before hours of work.

    Raises:
        DatasetError: the suffix is none of npz, xyz and extxyz.
    """
    if Path(path).suffix not in {".npz", ".xyz", ".extxyz"}:
        raise DatasetError(f"cannot write {path}: the name must end in .npz, .xyz or .extxyz")


def parts_folder(output: str | os.PathLike[str]) -> Path:
    """Where the parts of a set are kept unless the user says otherwise: ``NAME.parts`` beside it."""
    return Path(output).with_suffix(".parts")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(
            f"cannot make the folder {folder} for finished parts: {reason}"
        ) from error


def _key(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_labels(path: Path) -> Iterator[tuple[str, tuple[float, FloatArray]]]:
    """Whole rows of a labels file; a line that a kill cut short is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                forces = np.array(row["forces"], dtype=np.float64)
                yield row["key"], (float(row["energy"]), forces)
            except (ValueError, KeyError, TypeError):
                continue


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def _single_threads() -> Iterator[None]:
    """Processes started inside get one thread each; thread pools read this when they load."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _pool(
    workers: int, settings: GenerationSettings, start: Structure
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end at once when the block fails or this process dies."""
    context = get_context("spawn")
    lifeline, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(settings, start.numbers, start.positions, lifeline),
    )
    try:
        yield pool
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        ours.close()


# What every job of a worker process shares; set once per process by _start_worker.
_shared: dict[str, Any] = {}


def _start_worker(
    settings: GenerationSettings,
    numbers: IntArray,
    positions: FloatArray,
    lifeline: connection.Connection | None = None,
) -> None:
    if lifeline is not None:
        # Ctrl-C reaches every process of the terminal; the parent decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    _shared["sampling"] = settings.sampling
    _shared["start"] = Structure(numbers, positions)
    _shared["labeller"] = make_labeller(settings.method, numbers, settings.sampling.charge)


def _end_with(lifeline: connection.Connection) -> None:
    """Nothing is ever sent: the pipe becomes readable when the parent closes its end or dies."""
    connection.wait([lifeline])
    os._exit(1)


def _sample(trajectory: Trajectory) -> FloatArray:
    return sample_trajectory(
        _shared["start"], trajectory.n_frames, _shared["sampling"], trajectory.seed
    )


def _label(positions: FloatArray) -> Any:
    return _shared["labeller"].label(positions)
