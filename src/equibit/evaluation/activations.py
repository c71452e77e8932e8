"""Which codes the activations of a quantised network really take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from equibit.evaluation.size import MAX_BITS, CodeUse
from equibit.networks.potential import TorchPotential
from equibit.quantization.codecs import (
    ComponentCodec,
    IdentityCodec,
    MDDQCodebookCodec,
    MDDQCodec,
    VectorCodec,
)
from equibit.quantization.quantizers import ScalarQuantizer
from equibit.structures import Structure

Codes = list[npt.NDArray[np.int64]]


def activation_code_use(
    potential: TorchPotential, structures: Sequence[Structure]
) -> list[CodeUse]:
    """Use of the codes of every activation quantiser of up to eight bits; empty for FP32.

    Structures go through the network one by one, so that no padding is counted.
    """
    seen: dict[tuple[str, str, int, bool], Codes] = {}
    with ExitStack() as hooks:
        for name, module in potential.network.named_modules():
            if isinstance(module, ScalarQuantizer | VectorCodec):
                hook = module.register_forward_pre_hook(_collector(name, seen))
                hooks.callback(hook.remove)
        for structure in structures:
            potential.compute([structure], forces=False)
    return [
        CodeUse.of(name, kind, bits, np.concatenate(codes), signed=signed)
        for (name, kind, bits, signed), codes in seen.items()
    ]


def _collector(name: str, seen: dict[tuple[str, str, int, bool], Codes]) -> Any:
    def collect(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for kind, bits, signed, codes in _codes(module, inputs):
            if bits <= MAX_BITS:
                flat = codes.detach().cpu().numpy().astype(np.int64).ravel()
                seen.setdefault((name, kind, bits, signed), []).append(flat)

    return collect


def _codes(module: nn.Module, inputs: tuple[Any, ...]) -> Iterator[tuple[str, int, bool, Tensor]]:
    """Kind, bits, sign and codes of what a quantiser is about to round."""
    if isinstance(module, ScalarQuantizer):
        x, context = inputs
        if module.enabled:
            x = x if module.centers is None else x - module.centers[context.species]
            yield "activation", module.spec.bits, True, module.codes(x)[0]
        return
    assert isinstance(module, VectorCodec)
    if isinstance(module, IdentityCodec | ComponentCodec):
        return  # nothing is rounded, or by a quantiser of scalars, which is asked itself
    codes, spec = module.codes(inputs[0]), module.spec
    if isinstance(module, MDDQCodec):
        yield "magnitude", spec.magnitude_bits, False, codes[0]
        indexed = isinstance(module, MDDQCodebookCodec) and module.codebook is not None
        yield "direction", spec.direction_bits, not indexed, codes[1]
    else:
        yield "vector component", spec.magnitude_bits, True, codes[0]
