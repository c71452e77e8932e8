"""Codes and steps as bytes: what a saved network and the engine share. NumPy only.

Codes of b bits are two's complement, packed without gaps in row-major order, least significant bits
first: two 4-bit codes share a byte, the earlier one in its low half. Codes of 16 bits are bfloat16 numbers.

Steps on the grid 2^(k/16) take one byte each, k − k_min, and lie behind the codes; other steps keep the
narrowest float type that holds them exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equibit.structures.errors import FileFormatError

STEPS_PER_OCTAVE = 16

StepFormat = Literal["log2", "float16", "float32"]
Entries = dict[str, dict[str, Any]]

_SHARED = ("bits", "granularity", "group_size", "step_format", "input_bits")


def pack_codes(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes in −2^(b−1) … 2^(b−1)−1 as bytes. Shape: any → [⌈numel·bits/8⌉].

    Raises:
        ValueError: a code outside the range.
    """
    values = np.asarray(codes).astype(np.int64).ravel()
    half = 1 << (bits - 1)
    if values.size and (values.min() < -half or values.max() >= half):
        raise ValueError(f"codes span {values.min()} to {values.max()}: too wide for {bits} bits")
    unsigned = (values & (2 * half - 1)).astype("<u2").view(np.uint8).reshape(-1, 2)
    each = np.unpackbits(unsigned, axis=1, bitorder="little")[:, :bits]
    return np.packbits(each, bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """The inverse of ``pack_codes``, int8 or, beyond 8 bits, int16.

    Raises:
        FileFormatError: the number of bytes does not fit the shape.
    """
    count = int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.size != -(-count * bits // 8):
        raise FileFormatError(
            f"{packed.size} bytes of {packed.dtype} cannot hold {count} codes of {bits} bits"
        )
    each = np.unpackbits(packed.ravel(), count=count * bits, bitorder="little")
    whole = np.pad(each.reshape(count, bits), ((0, 0), (0, 16 - bits)))
    values = np.packbits(whole, axis=1, bitorder="little").view("<u2").astype(np.int32)[:, 0]
    half = 1 << (bits - 1)
    signed = (values ^ half) - half
    return signed.astype(np.int8 if bits <= 8 else np.int16).reshape(shape)


def grid_steps(indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """2^(k/16), correctly rounded, the same on every machine. Shape: unchanged."""
    octaves, sixteenths = np.divmod(indices, STEPS_PER_OCTAVE)
    mantissas = np.array([2.0 ** (j / STEPS_PER_OCTAVE) for j in range(STEPS_PER_OCTAVE)])
    return np.ldexp(mantissas[sixteenths], octaves).astype(np.float32)


@dataclass(frozen=True)
class PackedSteps:
    """Steps as stored.

    Attributes:
        values: uint8 offsets on the grid, or floats.
        format: ``log2`` for offsets, else the float type.
        first: k_min of ``log2``, else 0.
    """

    values: NDArray[Any]
    format: StepFormat
    first: int = 0


def pack_steps(steps: NDArray[np.floating[Any]]) -> PackedSteps:
    """The narrowest exact form of float32 steps. Shape: unchanged."""
    steps = np.asarray(steps, np.float32)
    if (steps > 0).all() and steps.size:
        indices = np.rint(STEPS_PER_OCTAVE * np.log2(steps.astype(np.float64))).astype(np.int64)
        first = int(indices.min())
        if indices.max() - first < 256 and (grid_steps(indices) == steps).all():
            return PackedSteps((indices - first).astype(np.uint8), "log2", first)
    with np.errstate(over="ignore"):
        half = steps.astype(np.float16)
    if (half.astype(np.float32) == steps).all():
        return PackedSteps(half, "float16")
    return PackedSteps(steps, "float32")


def unpack_steps(packed: PackedSteps) -> NDArray[np.float32]:
    """The inverse of ``pack_steps``, exact."""
    if packed.format == "log2":
        return grid_steps(packed.values.astype(np.int64) + packed.first)
    return packed.values.astype(np.float32)


def code_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of packed codes."""
    return -(-prod(shape) * bits // 8)


def steps_shape(shape: Sequence[int], granularity: str, group_size: int) -> tuple[int, ...]:
    """Shape of the steps of a weight [..., out, in]."""
    if granularity == "tensor":
        return (1,) * len(shape)
    groups = -(-shape[-1] // group_size) if granularity == "group" else 1
    return (*shape[:-1], groups)


def shared_entries(layers: Entries) -> tuple[dict[str, Any], Entries]:
    """What most layers have in common, once, and what is left to say of each."""
    common = {}
    for key in _SHARED:
        counts = Counter(entry[key] for entry in layers.values() if key in entry)
        if counts:
            common[key] = counts.most_common(1)[0][0]
    own = {
        name: {k: v for k, v in entry.items() if k not in common or v != common[k]}
        for name, entry in layers.items()
    }
    return common, own


def whole_entries(manifest: Mapping[str, Any]) -> Entries:
    """The layers of a manifest, each with what it shares with the others."""
    common = manifest.get("common", {})
    return {name: {**common, **entry} for name, entry in manifest.get("layers", {}).items()}
