"""Values that several commands take, checked before any work begins."""

from __future__ import annotations

from equibit.structures.errors import ConfigError

DTYPES = ("float32", "float64")


def checked_dtype(dtype: str | None) -> str | None:
    """``dtype`` itself.

    Raises:
        ConfigError: neither float32 nor float64.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: expected {' or '.join(DTYPES)}")
    return dtype
