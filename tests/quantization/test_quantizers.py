"""Rounding errors, straight-through derivatives to second order, and calibration of quantisers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from equibit.networks.context import Context
from equibit.quantization.quantizers import (
    DynamicQuantizer,
    LSQWeightQuantizer,
    ScalarQuantizer,
    StaticQuantizer,
    WeightQuantizer,
    learned_step_quantize,
    round_through,
    step_grid,
)
from equibit.quantization.recipes import ScalarSpec, WeightSpec
from equibit.structures.errors import ConfigError, ModelError

CONTEXT = Context(torch.tensor([0, 1, 1, 0]))


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(
    scale: str, bits: int = 8, n_species: int | None = None, **options: bool
) -> ScalarQuantizer:
    spec = ScalarSpec(bits=bits, scale=scale, **options)
    return ScalarQuantizer.named(scale)(spec, 16, n_species).double()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_dynamic_rounding_is_within_half_a_step_of_each_row(bits: int) -> None:
    x = values(4, 16) * torch.tensor([[1e-3], [1.0], [50.0], [0.0]])
    quantizer = make("dynamic", bits)
    codes, step = quantizer.codes(x)
    assert codes.abs().max() == quantizer.highest
    assert torch.equal(codes, codes.round())
    rounded = quantizer(x, CONTEXT)
    assert ((rounded - x).abs() <= 0.5001 * step).all()
    assert torch.equal(rounded, quantizer.dequantize(codes, step))
    assert torch.equal(rounded[3], torch.zeros(16).double())
    assert torch.equal(quantizer(-x, CONTEXT), -rounded)


def test_a_row_does_not_depend_on_other_rows() -> None:
    x = values(4, 16)
    quantizer = make("dynamic")
    alone = quantizer(x[:1], Context(CONTEXT.species[:1]))
    assert torch.equal(quantizer(x, CONTEXT)[:1], alone)


def test_dynamic_rounding_passes_the_gradient_of_every_element() -> None:
    x = values(4, 16).requires_grad_()
    g = values(4, 16, seed=1)
    (gradient,) = torch.autograd.grad((make("dynamic")(x, CONTEXT) * g).sum(), x)
    assert torch.equal(gradient, g)


@pytest.mark.parametrize("scale", ["dynamic", "static"])
def test_force_losses_can_differentiate_twice(scale: str) -> None:
    x = values(4, 16).requires_grad_()
    quantizer = make(scale)
    energy = quantizer(x, CONTEXT).pow(3).sum()
    (force,) = torch.autograd.grad(energy, x, create_graph=True)
    (second,) = torch.autograd.grad(force.square().sum(), x)
    # With derivative 1 through the rounding: d/dx (3 x̂²)² = 36 x̂³.
    rounded = quantizer(x, CONTEXT).detach()
    inside = (rounded.abs() < rounded.abs().max()) | torch.tensor(scale == "dynamic")
    torch.testing.assert_close(second[inside], 36 * rounded[inside] ** 3)


def test_functional_transforms_differentiate_too() -> None:
    quantizer = make("dynamic")
    gradient = torch.func.grad(lambda x: quantizer(x, CONTEXT).square().sum())(values(4, 16))
    torch.testing.assert_close(gradient, 2 * quantizer(values(4, 16), CONTEXT))


def test_learned_step_has_the_published_derivative() -> None:
    x = torch.tensor([0.3, 1.26, -0.74, 9.0, -9.0], dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    rounded = learned_step_quantize(x, step, -8, 7, count=5)
    torch.testing.assert_close(rounded, torch.tensor([0.5, 1.5, -0.5, 3.5, -4.0]).double())
    g = values(5, seed=3)
    dx, dstep = torch.autograd.grad((rounded * g).sum(), (x, step))
    torch.testing.assert_close(dx, g * torch.tensor([1, 1, 1, 0, 0]))
    slope = torch.tensor([1 - 0.6, 3 - 2.52, -1 + 1.48, 7, -8]).double()
    torch.testing.assert_close(dstep, (g * slope).sum() / (5 * 7) ** 0.5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_rounding_is_odd(numbers: list[float]) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    assert torch.equal(round_through(-x), -round_through(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_static_calibration_is_near_the_best_step(bits: int) -> None:
    x = values(500, 16)
    quantizer = make("static", bits)
    quantizer.observing = "ranges"
    context = Context(torch.zeros(500, dtype=torch.int64))
    assert torch.equal(quantizer(x, context), x)
    quantizer.finish()
    error = (quantizer(x, context) - x).square().mean()
    steps = torch.logspace(-4, 0, 400, dtype=torch.float64)
    q = quantizer.highest
    best = min((s * (x / s).clamp(-q, q).round() - x).square().mean() for s in steps)
    assert error < 1.05 * best
    assert quantizer.observing is None


def test_static_step_learns_to_lose_less() -> None:
    x = values(64, 16)
    quantizer = make("static", 4)
    context = Context(torch.zeros(64, dtype=torch.int64))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = (quantizer(x, context) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_centres_are_the_species_means_and_shrink_the_error() -> None:
    centers = 20 * values(2, 16, seed=4)
    species = torch.arange(64) % 2
    context = Context(species)
    x = centers[species] + values(64, 16)
    centered, plain = make("dynamic", n_species=2, centered=True), make("dynamic")
    centered.observing = "means"
    centered(x, context)
    centered.finish()
    means = torch.stack([x[species == s].mean(0) for s in range(2)])
    step = 2.0 ** torch.ceil(torch.log2(means.abs().max() / 127))
    assert torch.all((centered.centers - means).abs() <= step / 2)
    assert torch.equal(torch.round(centered.centers / step), centered.centers / step)
    error = [(q(x, context) - x).square().mean().sqrt() for q in (centered, plain)]
    assert error[0] < 0.15 * error[1]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(centered(x, context).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_centring_edge_inputs_names_the_remedy() -> None:
    quantizer = make("dynamic", n_species=2, centered=True)
    quantizer.observing = "means"
    with pytest.raises(ModelError, match="edge_layers"):
        quantizer(values(12, 16), CONTEXT)


@pytest.mark.parametrize("shape", [(5, 48), (3, 5, 16), (7, 33)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_every_layer_round_to_codes_times_steps(
    shape: tuple[int, ...], granularity: str, bits: int
) -> None:
    weight = values(*shape)
    spec = WeightSpec(bits=bits, granularity=granularity, group_size=16)
    quantizer = LSQWeightQuantizer(spec, weight)
    codes, steps = quantizer.codes(weight)
    assert codes.shape == weight.shape
    groups = -(-shape[-1] // 16) if granularity == "group" else 1
    expected = (1,) * len(shape) if granularity == "tensor" else (*shape[:-1], groups)
    assert steps.shape == expected
    assert codes.min() >= quantizer.lowest
    assert codes.max() <= quantizer.highest
    assert torch.equal(quantizer(weight), quantizer.dequantize(codes, steps))
    assert torch.isin(steps.float(), step_grid()).all()
    relative = (quantizer(weight) - weight).norm() / weight.norm()
    assert relative < {4: 0.16, 8: 0.012}[bits]


def test_finer_steps_lose_less() -> None:
    weight = values(16, 64) * torch.logspace(-2, 0, 16)[:, None] * torch.logspace(0, 1, 64)
    errors = []
    for granularity in ("tensor", "channel", "group"):
        spec = WeightSpec(bits=4, granularity=granularity, group_size=16)
        errors.append((LSQWeightQuantizer(spec, weight)(weight) - weight).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_a_row_of_zeros_stays_zero_and_trains() -> None:
    weight = values(3, 8)
    weight[1] = 0
    quantizer = LSQWeightQuantizer(WeightSpec(bits=4), weight)
    rounded = quantizer(weight.requires_grad_())
    rounded.square().sum().backward()
    assert torch.equal(rounded[1], torch.zeros(8).double())
    assert weight.grad.isfinite().all()
    assert quantizer.log2_step.grad.isfinite().all()


def test_weight_steps_learn() -> None:
    weight = values(6, 32)
    quantizer = LSQWeightQuantizer(WeightSpec(bits=4), weight)
    quantizer.log2_step.data += 0.7
    before = (quantizer(weight) - weight).square().sum().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for _ in range(100):
        loss = (quantizer(weight) - weight).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * before


def test_user_quantisers_are_found_by_name() -> None:
    class PowerOfTwo(DynamicQuantizer, name="test-power-of-two"):
        def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
            _, step = super().codes(x)
            step = torch.exp2(torch.ceil(torch.log2(step)))
            return torch.round(x / step), step

    try:
        x = values(4, 16)
        quantizer = make("test-power-of-two")
        _, step = quantizer.codes(x)
        assert torch.equal(torch.log2(step), torch.log2(step).round())
        assert (quantizer(x, CONTEXT) - x).abs().max() <= 0.5001 * step.max()
    finally:
        del ScalarQuantizer.registry["test-power-of-two"]


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dynamic'"):
        ScalarQuantizer.named("dinamic")
    with pytest.raises(ConfigError, match="known are lsq"):
        WeightQuantizer.named("stochastic")
    assert ScalarQuantizer.named("static") is StaticQuantizer
