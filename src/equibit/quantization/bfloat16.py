"""Rounding to bfloat16: 8 bits of a number's mantissa behind an exponent of its own.

A code is the number's 16 bits, read as a signed integer, so there is nothing to step by, to clip or
to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equibit.quantization.quantizers import ScalarQuantizer, WeightQuantizer
from equibit.quantization.recipes import BFLOAT16, BFLOAT16_BITS, ScalarSpec, WeightSpec
from equibit.structures.errors import ConfigError


def bfloat16_codes(x: Tensor) -> Tensor:
    """Bits of the nearest bfloat16 number, ties to even, as integers. Shape: unchanged."""
    return x.to(torch.bfloat16).view(torch.int16).to(x.dtype)


def bfloat16_numbers(codes: Tensor) -> Tensor:
    """The inverse of ``bfloat16_codes``, exact. Shape: unchanged."""
    return codes.to(torch.int16).view(torch.bfloat16).to(codes.dtype)


class Bfloat16Weights(WeightQuantizer, name=BFLOAT16):
    """ŵ is the nearest bfloat16 number, and the one step is 1. The derivative is 1."""

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__(spec, weight)
        if spec.granularity != "tensor":
            raise ConfigError(
                f"bfloat16 weights have no steps to share: their granularity is tensor, "
                f"not {spec.granularity}"
            )

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return bfloat16_codes(weight), weight.new_ones((1,) * weight.ndim)

    def dequantize(self, codes: Tensor, steps: Tensor, offsets: Tensor | None = None) -> Tensor:
        return super().dequantize(bfloat16_numbers(codes), steps, offsets)


class Bfloat16Quantizer(ScalarQuantizer, name=BFLOAT16):
    """x̂ is the nearest bfloat16 number. The derivative is 1."""

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        if spec.bits != BFLOAT16_BITS:
            raise ConfigError(f"bfloat16 inputs have {BFLOAT16_BITS} bits, not {spec.bits}")
        super().__init__(spec, channels, n_species)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return bfloat16_codes(x), x.new_ones(1)

    def dequantize(self, codes: Tensor, step: Tensor) -> Tensor:
        return step * bfloat16_numbers(codes)
