"""Readers and writers of structure files."""

from equibit.structures.formats.api import (
    count_structures,
    detect_format,
    iter_entries,
    iter_structures,
    read_structures,
    write_structures,
)
from equibit.structures.formats.labels import LabelKeys
from equibit.structures.formats.refusals import Refused
from equibit.structures.formats.streaming import StructureWriter

__all__ = [
    "LabelKeys",
    "Refused",
    "StructureWriter",
    "count_structures",
    "detect_format",
    "iter_entries",
    "iter_structures",
    "read_structures",
    "write_structures",
]
