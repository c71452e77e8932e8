"""Predictions for every structure of a file, streamed, resumed and complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

from equibit.evaluation.batches import (
    DEFAULT_BATCH_SIZE,
    MAX_BATCH_ATOMS,
    Progress,
    batched,
    predict_batch,
    silent,
)
from equibit.evaluation.record import Record
from equibit.storage import WriteError, atomic_text
from equibit.structures.errors import FileFormatError, ModelError, StructureError
from equibit.structures.formats.api import count_structures, iter_entries
from equibit.structures.formats.refusals import Entry, Refused
from equibit.structures.formats.streaming import StructureWriter
from equibit.structures.potential import Potential, Prediction
from equibit.structures.structure import Structure
from equibit.structures.units import Units

_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class Skipped(Record):
    """A structure that got no prediction: its position in the input, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class PredictionRun(Record):
    """What :func:`predict_file` did.

    Attributes:
        output: the file written.
        written: structures in it.
        resumed: how many of them an earlier, interrupted run had already written.
        skipped: structures left out.
        skipped_list: the file that lists them, or None.
        seconds: wall time of this run.
        structures_per_second: read, computed and written by this run, per second of wall time.
        structures_per_core_second: the same per second of processor time.
    """

    output: str
    written: int
    resumed: int
    skipped: tuple[Skipped, ...]
    skipped_list: str | None
    seconds: float
    structures_per_second: float
    structures_per_core_second: float


def predict_file(
    potential: Potential,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    units: Units | None = None,
    stress: bool = True,
    skip_bad: bool = False,
    resume: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
    model_fingerprint: str = "",
    progress: Progress = silent,
) -> PredictionRun:
    """Energies, forces and, for cells periodic in three directions, stresses of a whole file.

    Structures are read, computed and written in batches, so files may be larger than memory. The
    output appears only once it is complete; after an interruption the same call goes on where the
    last one stopped, unless model, input or options have changed. Labels of the input are replaced
    by predictions, its ``info`` is kept.

    Args:
        potential: what predicts.
        source: any format that equibit reads.
        output: any format that equibit writes, by its suffix.
        units: of the input, where the file does not state them.
        stress: whether to predict stresses.
        skip_bad: leave out structures that are damaged in the file, where those behind them can be
            read, or that the potential refuses, and list them in ``<output>.skipped.json``;
            otherwise the first of them ends the run.
        resume: False starts anew.
        batch_size: structures per call.
        model_fingerprint: tells two models of the same name apart when resuming.
        progress: called after each batch.

    Raises:
        FileFormatError, UnitsError: the input cannot be read.
        StructureError, ModelError: a structure that cannot be predicted, named by its index.
        WriteError: the output cannot be written.
    """
    if Path(source).resolve() == Path(output).resolve():
        raise FileFormatError(f"{output} is the input; name another file for the predictions")
    begin, begin_cores = time.perf_counter(), time.process_time()
    found = iter_entries(source, units=units)
    total = count_structures(source)
    job = _job(potential, source, units, stress, skip_bad, model_fingerprint)
    bad = _BadList(source, Path(output), job, resume=resume and skip_bad)
    stage = "structures"
    with StructureWriter(output, job=job, resume=resume) as writer:
        resumed = writer.written
        if not resumed:
            bad.forget()
        done = bad.position_after(resumed)
        progress(stage, done, total)
        for batch in batched(islice(found, done, None), batch_size):
            try:
                predicted = _predicted(potential, batch, done, stress, bad if skip_bad else None)
                for structure, prediction in predicted:
                    writer.write(_labelled(structure, prediction))
            except (StructureError, ModelError) as error:
                raise type(error)(
                    f"{source}, {error}; --skip-bad leaves out what cannot be predicted"
                ) from error
            done += len(batch)
            progress(stage, done, total)
        written = writer.written
        seconds = max(time.perf_counter() - begin, 1e-9)
        cores = max(time.process_time() - begin_cores, 1e-9)
        if written == 0 and bad.entries:
            first, count = bad.entries[0], len(bad.entries)
            bad.forget()
            raise StructureError(
                f"none of the {count} structures of {source} could be predicted; "
                f"the first: structure {first.index}: {first.reason}"
            )
    return PredictionRun(
        output=os.fspath(output),
        written=written,
        resumed=resumed,
        skipped=tuple(bad.entries),
        skipped_list=bad.finish(),
        seconds=seconds,
        structures_per_second=(written - resumed) / seconds,
        structures_per_core_second=(written - resumed) / cores,
    )


class _BadList:
    """Skipped structures, kept beside the output so that a resumed run still knows them."""

    def __init__(
        self, source: str | os.PathLike[str], output: Path, job: str, *, resume: bool
    ) -> None:
        self.source = os.fspath(source)
        self.final = output.with_name(output.name + ".skipped.json")
        self.part = output.with_name(f".{output.name}.skipped")
        self.job = hashlib.sha256(job.encode()).hexdigest()
        self.entries: list[Skipped] = self._recorded() if resume else []

    def add(self, index: int, reason: str) -> None:
        reason = reason.removeprefix(f"{self.source}, ").removeprefix(f"structure {index}: ")
        if any(entry.index == index for entry in self.entries[-MAX_BATCH_ATOMS:]):
            return  # known from the run that was interrupted within this batch
        entry = Skipped(index, reason)
        fresh = not self.entries
        try:
            with self.part.open("w" if fresh else "a", encoding="utf-8") as file:
                if fresh:
                    file.write(self.job + "\n")
                file.write(json.dumps(entry.to_json()) + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {self.part}: {error.strerror or error}") from error
        self.entries.append(entry)

    def position_after(self, written: int) -> int:
        """How much of the input gave ``written`` predictions and the skipped structures."""
        position = written
        for entry in self.entries:
            position += entry.index <= position
        return position

    def forget(self) -> None:
        self.entries = []
        self.part.unlink(missing_ok=True)

    def finish(self) -> str | None:
        """Turn the list into its final file, or remove that of an earlier run."""
        if self.entries:
            with atomic_text(self.final) as file:
                listed = [{"file": self.source} | entry.to_json() for entry in self.entries]
                json.dump(listed, file, indent=1, ensure_ascii=False)
        else:
            self.final.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)
        return str(self.final) if self.entries else None

    def _recorded(self) -> list[Skipped]:
        if not self.part.exists():
            return []
        job, *lines = self.part.read_text(encoding="utf-8").split("\n")
        if job != self.job:
            return []
        # What follows the last line end is a line cut off by a kill.
        return [Skipped(**json.loads(line)) for line in lines[:-1]]


def _predicted(
    potential: Potential,
    batch: Sequence[Entry],
    first: int,
    stress: bool,
    bad: _BadList | None,
) -> Iterator[tuple[Structure, Prediction]]:
    """Structures and predictions in order; bad structures are noted, or raise where ``bad`` is None."""
    index = first
    for kind, run in groupby(batch, key=_kind):
        entries = list(run)
        if kind == "refused":
            _note_refused([e for e in entries if isinstance(e, Refused)], index, bad)
        else:
            structures = [e for e in entries if isinstance(e, Structure)]
            yield from _predicted_alike(
                potential, structures, index, stress and kind == "cell", bad
            )
        index += len(entries)


def _kind(entry: Entry) -> str:
    if isinstance(entry, Refused):
        return "refused"
    return "cell" if entry.cell is not None and entry.pbc.all() else "open"


def _note_refused(refused: Sequence[Refused], first: int, bad: _BadList | None) -> None:
    for index, entry in enumerate(refused, start=first):
        if bad is None:
            raise FileFormatError(
                f"{entry.error}; --skip-bad leaves out what cannot be read"
            ) from entry.error
        bad.add(index, str(entry.error))


def _predicted_alike(
    potential: Potential,
    structures: Sequence[Structure],
    first: int,
    stress: bool,
    bad: _BadList | None,
) -> Iterator[tuple[Structure, Prediction]]:
    """As ``_predicted``, of structures that all get a stress, or none of them."""
    try:
        predictions: list[Prediction | None] = list(
            predict_batch(potential, structures, first_index=first, stress=stress)
        )
    except (StructureError, ModelError):
        if bad is None:
            raise
        predictions = []
        for index, structure in enumerate(structures, start=first):
            try:
                predictions += predict_batch(potential, [structure], stress=stress)
            except (StructureError, ModelError) as error:
                bad.add(index, str(error).removeprefix("structure 0: "))
                predictions.append(None)
    yield from (
        (structure, prediction)
        for structure, prediction in zip(structures, predictions, strict=True)
        if prediction is not None
    )


def _labelled(structure: Structure, prediction: Prediction) -> Structure:
    return replace(
        structure,
        energy=prediction.energy,
        forces=prediction.forces,
        stress=prediction.stress,
    )


def _job(
    potential: Potential,
    source: str | os.PathLike[str],
    units: Units | None,
    stress: bool,
    skip_bad: bool,
    model_fingerprint: str,
) -> str:
    """What must be the same for an interrupted run to go on."""
    info = potential.info
    return json.dumps(
        [
            [info.name, info.dtype, info.recipe, info.cutoff, model_fingerprint],
            fingerprint(source),
            [str(units), stress, skip_bad],
        ]
    )


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Digest of a file's length, time of change and first megabyte.

    Raises:
        FileFormatError: the file cannot be read.
    """
    source = Path(path)
    try:
        status = source.stat()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        if source.is_file():
            with source.open("rb") as file:
                digest.update(file.read(_FINGERPRINT_BYTES))
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
