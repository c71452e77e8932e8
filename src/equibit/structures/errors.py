"""Errors a user can act on. Every message names the file, key or atom and says what to do."""


class EquibitError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class StructureError(EquibitError, ValueError):
    """A structure cannot be used: wrong shape, NaN, coinciding atoms, empty system."""


class FileFormatError(EquibitError, ValueError):
    """A file is missing, truncated, foreign, empty or of another version."""


class UnitsError(EquibitError, ValueError):
    """Units are missing, unknown or contradict the data."""


class DatasetError(EquibitError, ValueError):
    """A dataset is unknown, incomplete or cannot be fetched."""


class ConfigError(EquibitError, ValueError):
    """A configuration is invalid: misspelt key, value out of range."""


class ModelError(EquibitError, ValueError):
    """A model cannot serve the request: unknown element, missing layer, unsupported recipe."""
