"""Places of a file that hold no usable structure, where what follows them can still be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from equibit.structures.errors import FileFormatError
from equibit.structures.structure import Structure


@dataclass(frozen=True)
class Refused:
    """Stands in the place of a damaged structure; its error names the file and the place.

    Its length is that of a structure without atoms.
    """

    error: FileFormatError

    def __len__(self) -> int:
        return 0


Entry = Structure | Refused


def structures_of(entries: Iterable[Entry]) -> Iterator[Structure]:
    """The structures, up to the first place without one.

    Raises:
        FileFormatError: such a place.
    """
    for entry in entries:
        if isinstance(entry, Refused):
            raise entry.error
        yield entry
