"""Rounding to bfloat16 against cases worked out by hand, derivatives included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from equibit.networks.context import Context
from equibit.quantization.bfloat16 import bfloat16_codes, bfloat16_numbers
from equibit.quantization.quantizers import ScalarQuantizer, WeightQuantizer
from equibit.quantization.recipes import ScalarSpec, WeightSpec, get_recipe
from equibit.structures.errors import ConfigError

UNIT = 2.0**-7  # between 1 and 2, where 8 bits of the mantissa are 1 + k/128

# Number, nearest bfloat16 number, its bits. Halfway the even k wins.
BY_HAND = [
    (0.0, 0.0, 0x0000),
    (1.0, 1.0, 0x3F80),
    (1 + 0.4 * UNIT, 1.0, 0x3F80),
    (1 + 0.5 * UNIT, 1.0, 0x3F80),
    (1 + 0.6 * UNIT, 1 + UNIT, 0x3F81),
    (1 + 1.5 * UNIT, 1 + 2 * UNIT, 0x3F82),
    (2 - 0.5 * UNIT, 2.0, 0x4000),
    (-0.1, -0.10009765625, 0xBDCD - 0x10000),  # −1.6015625/16: 1.6 is 1 + 76.8/128
    (300.0, 300.0, 0x4396),
    (301.0, 300.0, 0x4396),  # steps of 2 from 256 on, and 150 is even
    (1e-20, 1.0005e-20, 0x1E3D),
]


def context(rows: int) -> Context:
    return Context(torch.zeros(rows, dtype=torch.int64))


def scalars(**options: bool) -> ScalarQuantizer:
    spec = ScalarSpec(bits=16, scale="bfloat16", **options)
    return ScalarQuantizer.named("bfloat16")(spec, 3, 1)


@pytest.mark.parametrize(("number", "nearest", "bits"), BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_and_their_bits(
    number: float, nearest: float, bits: int, dtype: torch.dtype
) -> None:
    code = bfloat16_codes(torch.tensor([number], dtype=dtype))
    assert code.dtype == dtype
    assert code.item() == bits
    assert bfloat16_numbers(code).item() == pytest.approx(nearest, rel=1e-4, abs=0)
    negative = bfloat16_numbers(bfloat16_codes(torch.tensor([-number], dtype=dtype)))
    assert torch.equal(negative, -bfloat16_numbers(code))


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=6))
def test_no_number_moves_by_more_than_half_a_unit(values: list[float]) -> None:
    x = torch.tensor(values).double()
    rounded = bfloat16_numbers(bfloat16_codes(x))
    assert ((rounded - x).abs() <= 2.0**-8 * x.abs() + 1e-40).all()
    assert torch.equal(bfloat16_numbers(bfloat16_codes(rounded)), rounded)
    upper = rounded.float().numpy().view(np.uint32)
    assert not (upper & 0xFFFF).any()


def test_inputs_have_the_derivative_of_what_they_were() -> None:
    x = torch.tensor([[1 + 0.6 * UNIT, -0.1, 300.0]], requires_grad=True)
    rounded = scalars()(x, context(1))
    assert rounded.tolist() == [[1 + UNIT, -0.10009765625, 300.0]]
    # Twice, as force losses need: d/dx (2 x̂)² = 8 x̂.
    (first,) = torch.autograd.grad(rounded.square().sum(), x, create_graph=True)
    assert torch.equal(first, 2 * rounded)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert torch.equal(second, 8 * rounded)


def test_the_mean_of_a_species_is_no_part_of_what_is_rounded() -> None:
    quantizer = scalars(centered=True)
    quantizer.centers = torch.tensor([[1.0, 1.0, 0.5]])
    x = torch.tensor([[1 + 0.4 * UNIT, 1 + UNIT + UNIT**2, 0.75]])
    # 0.4/128 needs its own exponent only; 1/128 + 1/16384 is 1.0078125/128, which 8 bits hold.
    expected = torch.tensor([[1 + bfloat16_numbers(bfloat16_codes(x[0, 0] - 1)), x[0, 1], 0.75]])
    assert torch.equal(quantizer(x, context(1)), expected)
    assert abs(expected[0, 0] - x[0, 0]) < 1e-5


def weights(values: Tensor, **options: object) -> WeightQuantizer:
    spec = WeightSpec.model_validate(
        {"bits": 16, "method": "bfloat16", "granularity": "tensor", **options}
    )
    return WeightQuantizer.named("bfloat16")(spec, values)


def test_weights_are_their_codes_and_learn_straight_through() -> None:
    weight = torch.tensor([[1 + 1.5 * UNIT, -0.1], [301.0, 0.0]], requires_grad=True)
    quantizer = weights(weight.detach())
    codes, steps = quantizer.codes(weight.detach())
    assert codes.tolist() == [[0x3F82, 0xBDCD - 0x10000], [0x4396, 0]]
    assert steps.tolist() == [[1.0]]
    rounded = quantizer(weight)
    assert torch.equal(rounded, quantizer.dequantize(codes, steps))
    assert rounded.tolist() == [[1 + 2 * UNIT, -0.10009765625], [300.0, 0.0]]
    g = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (gradient,) = torch.autograd.grad((rounded * g).sum(), weight)
    assert torch.equal(gradient, g)


def test_steps_and_other_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match="granularity is tensor, not group"):
        weights(torch.zeros(2, 2), granularity="group")
    with pytest.raises(ConfigError, match="16 bits, not 8"):
        ScalarQuantizer.named("bfloat16")(ScalarSpec(bits=8, scale="bfloat16"), 3, 1)


def test_vectors_of_the_recipe_stay_float() -> None:
    """Rounded components would depend on how the molecule lies."""
    recipe = get_recipe("bf16")
    assert recipe.vectors.codec == "identity"
    assert recipe.attention_bits is None
    assert recipe.scalars is not None
    assert (recipe.scalars.scale, recipe.weights.method) == ("bfloat16", "bfloat16")
