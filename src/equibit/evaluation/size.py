"""What a model costs to keep, part by part, everything counted."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equibit.evaluation.record import Record
from equibit.quantization.packing import code_bytes, unpack_codes, whole_entries
from equibit.storage import read_container
from equibit.structures.errors import FileFormatError
from equibit.structures.structure import IntArray

FP32_BYTES = 4
FP32_BITS = 32
MAX_BITS = 8  # wider quantisers have more codes than a picture or a table can show


@dataclass(frozen=True)
class PartSize(Record):
    """One layer of a model file.

    Attributes:
        name: of the layer.
        bits: width of its weights; 32 where they stay FP32.
        n_weights: how many numbers it stands for.
        bytes: codes, scales and biases as stored.
        fp32_bytes: the same numbers at four bytes each.
        weight_bytes: of a quantised layer, its codes and steps alone, 0 for others.
        n_codes: how many weights these stand for.
    """

    name: str
    bits: int
    n_weights: int
    bytes: int
    fp32_bytes: int
    weight_bytes: int = 0
    n_codes: int = 0

    @property
    def quantized(self) -> bool:
        return self.bits < FP32_BITS


@dataclass(frozen=True)
class ModelSize(Record):
    """Size of a whole model file against its FP32 equivalent.

    Attributes:
        parts: its layers, in the order of the file.
        file_bytes: the file, headers included.
        fp32_file_bytes: the FP32 parent's file where it is known, else every weight at four bytes
            plus what of this file is no weight.
        quantized_ratio: FP32 bytes over stored bytes of the quantised layers; None without any.
        file_ratio: fp32_file_bytes over file_bytes.
        weight_ratios: by width of a code, FP32 bytes of the weights over their codes and steps.
    """

    parts: tuple[PartSize, ...]
    file_bytes: int
    fp32_file_bytes: int
    quantized_ratio: float | None
    file_ratio: float
    weight_ratios: Mapping[int, float]


def model_size(
    parts: Sequence[PartSize], *, file_bytes: int, fp32_file_bytes: int | None = None
) -> ModelSize:
    """Ratios from the parts of a file and its length on disk."""
    stored = sum(part.bytes for part in parts)
    if fp32_file_bytes is None:
        fp32_file_bytes = file_bytes - stored + sum(part.fp32_bytes for part in parts)
    quantized = [part for part in parts if part.quantized]
    return ModelSize(
        parts=tuple(parts),
        file_bytes=file_bytes,
        fp32_file_bytes=fp32_file_bytes,
        quantized_ratio=(
            sum(p.fp32_bytes for p in quantized) / sum(p.bytes for p in quantized)
            if quantized
            else None
        ),
        file_ratio=fp32_file_bytes / file_bytes,
        weight_ratios={
            bits: FP32_BYTES
            * sum(p.n_codes for p in quantized if p.bits == bits)
            / sum(p.weight_bytes for p in quantized if p.bits == bits)
            for bits in sorted({p.bits for p in quantized if p.weight_bytes})
        },
    )


def measure_size(
    path: str | os.PathLike[str], *, parent: str | os.PathLike[str] | None = None
) -> ModelSize:
    """Size of a model file, layer by layer.

    Tensors belong to the layer that their name starts with. What FP32 would not need (steps, centres,
    quantisers) is counted as stored and has no FP32 equivalent.

    Args:
        path: the model file.
        parent: file of its FP32 parent, whose length is then the reference of the whole file.

    Raises:
        FileFormatError: not a model file, or a damaged one.
    """
    container = read_container(path, kind="model")
    layers = packed_layers(container.header)
    names: dict[str, list[str]] = {}
    for name in container.tensors:
        names.setdefault(_owner(name, layers), []).append(name)
    parts = []
    for owner, members in names.items():
        packed = layers.get(owner)
        own = {f"{owner}.weight", f"{owner}.bias", owner}
        plain = [container.tensors[n] for n in members if packed is None or n in own]
        weights = sum(t.size for t in plain) + (0 if packed is None else math.prod(packed["shape"]))
        parts.append(
            PartSize(
                name=owner,
                bits=FP32_BITS if packed is None else int(packed["bits"]),
                n_weights=weights,
                bytes=sum(container.tensors[n].nbytes for n in members),
                fp32_bytes=FP32_BYTES * weights,
                weight_bytes=sum(
                    container.tensors[n].nbytes
                    for n in members
                    if packed is not None and n in (f"{owner}.codes", f"{owner}.steps")
                ),
                n_codes=0 if packed is None else math.prod(packed["shape"]),
            )
        )
    return model_size(
        parts,
        file_bytes=Path(path).stat().st_size,
        fp32_file_bytes=None if parent is None else Path(parent).stat().st_size,
    )


def weight_code_use(path: str | os.PathLike[str]) -> list[CodeUse]:
    """Use of the weight codes of up to eight bits, layer by layer of a model file; empty for FP32.

    Raises:
        FileFormatError: not a model file, or a damaged one.
    """
    container = read_container(path, kind="model")
    uses = []
    for name, layer in packed_layers(container.header).items():
        packed = container.tensors.get(f"{name}.codes")
        if packed is None:
            raise FileFormatError(f"{path} lacks the tensor {name}.codes; write it again")
        bits, shape = int(layer["bits"]), tuple(layer["shape"])
        if bits > MAX_BITS:
            continue
        codes = unpack_codes(
            packed.astype(np.uint8, copy=False)[: code_bytes(shape, bits)], bits, shape
        )
        uses.append(CodeUse.of(name, "weight", bits, codes, signed=True))
    return uses


def packed_layers(header: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Description of each quantised layer (shape, bits) by name; empty for an FP32 model."""
    return whole_entries(header.get("quantization") or {})


def _owner(name: str, layers: Mapping[str, Any]) -> str:
    """The quantised layer a tensor belongs to, or the module that holds it."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:length]) in layers:
            return ".".join(parts[:length])
    return ".".join(parts[:-1]) or name


@dataclass(frozen=True)
class CodeUse(Record):
    """How often each code of a quantiser occurs: codes never used are bits paid for nothing.

    Attributes:
        name: of the layer or activation.
        kind: ``weight``, ``activation``, ``vector component``, ``magnitude`` or ``direction``.
        bits: width of a code.
        codes: values, ascending. Shape: [n_codes].
        counts: occurrences. Shape: [n_codes].
    """

    name: str
    kind: str
    bits: int
    codes: IntArray
    counts: IntArray

    @classmethod
    def of(
        cls, name: str, kind: str, bits: int, codes: npt.NDArray[np.integer[Any]], *, signed: bool
    ) -> CodeUse:
        """Counts of integer codes over the whole range of a ``bits``-wide quantiser."""
        low = -(2 ** (bits - 1)) if signed else 0
        values = np.arange(low, low + 2**bits)
        counts = np.bincount(np.asarray(codes, dtype=np.int64).ravel() - low, minlength=values.size)
        return cls(name=name, kind=kind, bits=bits, codes=values, counts=counts)

    @property
    def used(self) -> float:
        """Fraction of the codes that occur."""
        return float(np.count_nonzero(self.counts)) / self.counts.size

    @property
    def entropy(self) -> float:
        """−Σ p log₂ p in bits, at most ``bits``."""
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(-(p * np.log2(p)).sum())
