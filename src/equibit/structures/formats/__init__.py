"""Readers and writers of structure files."""

from equibit.structures.formats.api import (
    detect_format,
    iter_structures,
    read_structures,
    write_structures,
)
from equibit.structures.formats.labels import LabelKeys
from equibit.structures.formats.streaming import StructureWriter

__all__ = [
    "LabelKeys",
    "StructureWriter",
    "detect_format",
    "iter_structures",
    "read_structures",
    "write_structures",
]
