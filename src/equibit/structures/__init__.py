"""Atoms, neighbours and file formats."""

from equibit.structures.errors import (
    ConfigError,
    DatasetError,
    EquibitError,
    FileFormatError,
    ModelError,
    StructureError,
    UnitsError,
)
from equibit.structures.neighbors import NeighborList, check_distinct_positions, neighbor_list
from equibit.structures.potential import Potential, PotentialInfo, Prediction
from equibit.structures.structure import Structure
from equibit.structures.units import INTERNAL_UNITS, Units, parse_units

__all__ = [
    "INTERNAL_UNITS",
    "ConfigError",
    "DatasetError",
    "EquibitError",
    "FileFormatError",
    "ModelError",
    "NeighborList",
    "Potential",
    "PotentialInfo",
    "Prediction",
    "Structure",
    "StructureError",
    "Units",
    "UnitsError",
    "check_distinct_positions",
    "neighbor_list",
    "parse_units",
]
