"""Long outputs: written structure by structure, resumed after a kill, complete or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

from equibit.structures.errors import EquibitError, FileFormatError, StructureError
from equibit.structures.formats.api import (
    checked_output_format,
    iter_structures,
    write_structures,
)
from equibit.structures.formats.extxyz import format_frame
from equibit.structures.structure import Structure

_LINES_AROUND_ATOMS = 2


class StructureWriter:
    """Writes structures one by one to a part file and turns it into ``path`` at the end.

    The part file lies beside ``path`` and is extended XYZ, which keeps float64 exactly. If the block
    ends by an error or the process is killed, it stays; the next writer for the same ``path`` and
    ``job`` cuts off a torn last frame and goes on, and ``written`` says how many structures to skip.

        with StructureWriter("out.traj", job=fingerprint) as writer:
            for structure in islice(structures, writer.written, None):
                writer.write(structure)

    Args:
        path: the file to appear; its suffix says the format.
        job: identifies the work; a part file of another job is not continued but replaced.
        format: as in :func:`write_structures`.
        resume: False starts anew.
        keep: how many structures of the part file to go on from at most; later ones are cut off.

    Raises:
        FileFormatError: a format that equibit does not write.
        WriteError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        job: str = "",
        format: str | None = None,  # noqa: A002
        resume: bool = True,
        keep: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.format = checked_output_format(path, format)
        digest = hashlib.sha256(job.encode()).hexdigest()[:12]
        self.part = self.path.with_name(f".{self.path.name}.{digest}.part")
        self.written = 0
        self._resume = resume
        self._keep = keep

    def begin_with(self, finished: str | os.PathLike[str]) -> None:
        """Make the part file of a finished file's structures, to write more behind them.

        Called before the block; ``finished`` may be ``path`` itself, which stays until the end.

        Raises:
            FileFormatError: ``finished`` cannot be read.
            WriteError: the part file cannot be written.
        """
        write_structures(self.part, iter_structures(finished), format="extxyz")

    def __enter__(self) -> StructureWriter:
        from equibit.storage import WriteError
        from equibit.storage.atomic import checked_target

        checked_target(self.path)
        try:
            end = 0
            if self._resume and self.part.exists():
                self.written, end = _complete_frames(self.part, self._keep)
            for other in self.path.parent.glob(f".{self.path.name}.*.part"):
                if other != self.part:
                    other.unlink()
            self._file = self.part.open("r+b" if end else "wb")
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror or error}") from error
        return self

    def write(self, structure: Structure) -> None:
        """Append one structure.

        Raises:
            WriteError: full disk; what is already written is kept.
        """
        try:
            self._file.write(format_frame(structure).encode())
            self._file.flush()
        except OSError as error:
            raise self._full(error) from error
        self.written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as fault:  # what a full disk did not take before
            if kind is None:
                raise self._full(fault) from fault
        if self.written == 0:
            self.part.unlink()
        if kind is not None:
            return
        if self.written == 0:
            raise StructureError(f"there are no structures to write to {self.path}")
        if self.format == "extxyz":
            os.replace(self.part, self.path)
        else:
            frames = iter_structures(self.part, format="extxyz")
            write_structures(self.path, frames, format=self.format)
            self.part.unlink()

    def _full(self, error: OSError) -> EquibitError:
        from equibit.storage import WriteError

        return WriteError(
            f"cannot write {self.path}: {error.strerror or error}; free some space and repeat "
            f"the command, which goes on after {self.written} structures"
        )


def _complete_frames(part: Path, most: int | None) -> tuple[int, int]:
    """Number of whole frames of a part file, at most ``most``, and the byte where the last ends."""
    frames = end = 0
    with part.open("rb") as file:
        while frames != most and (header := file.readline()):
            try:
                lines = int(header) + _LINES_AROUND_ATOMS - 1
            except ValueError:
                raise FileFormatError(
                    f"{part} is damaged; delete it and repeat the command"
                ) from None
            last = b""
            for _ in range(lines):
                last = file.readline()
            if not last.endswith(b"\n"):
                break
            frames, end = frames + 1, file.tell()
    return frames, end
