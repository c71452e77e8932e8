"""The published quantisers against small cases worked out by hand, derivatives included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equibit.networks.context import Context
from equibit.quantization import published  # noqa: F401  (registers the quantisers)
from equibit.quantization.codecs import ComponentCodec, VectorQuantizer
from equibit.quantization.published import AdaRoundWeights
from equibit.quantization.quantizers import ScalarQuantizer, WeightQuantizer
from equibit.quantization.recipes import ScalarSpec, VectorSpec, WeightSpec
from equibit.structures.errors import ConfigError

ONE_ATOM = Context(torch.tensor([0]))


def d(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def scalar(name: str, bits: int = 8) -> ScalarQuantizer:
    return ScalarQuantizer.named(name)(ScalarSpec(bits=bits, scale=name), 4).double()


def weight(name: str, values: Tensor, bits: int = 8, **options: object) -> WeightQuantizer:
    spec = WeightSpec.model_validate(
        {"method": name, "bits": bits, "granularity": "tensor", **options}
    )
    return WeightQuantizer.named(name)(spec, values).double()


def calibrated(name: str, x: Tensor, bits: int = 8) -> ScalarQuantizer:
    quantizer = scalar(name, bits)
    quantizer.observing = "ranges"
    assert torch.equal(quantizer(x, ONE_ATOM), x)
    quantizer.finish()
    return quantizer.eval()


def gradients(quantizer: ScalarQuantizer, x: Tensor, g: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((quantizer(x, ONE_ATOM) * g).sum(), x)
    return found


# --- Jacob: S = (3 − (−1))/(2^2 − 1) = 4/3, Z = round(0.75) = 1, values −4/3, 0, 4/3, 8/3.


def test_moving_ranges_are_affine_with_an_exact_zero() -> None:
    quantizer = calibrated("moving-range", d(-1.0, 0.5, 3.0, 2.0), bits=2)
    x = d(-5.0, -0.5, 0.0, 0.9, 3.0)
    torch.testing.assert_close(quantizer(x, ONE_ATOM), d(-4, 0, 0, 4, 8) / 3)
    codes, step = quantizer.codes(x)
    assert codes.tolist() == [-2, -1, -1, 0, 1]
    assert step.item() == pytest.approx(4 / 3)
    g = d(1, 2, 3, 4, 5)
    assert torch.equal(gradients(quantizer, x, g), d(0, 2, 3, 4, 5))


def test_ranges_move_with_training_and_only_after_a_step() -> None:
    quantizer = calibrated("moving-range", d(-1.0, 3.0))
    quantizer.train()
    torch.func.grad(lambda x: quantizer(x, ONE_ATOM).square().sum())(d(-3.0, 5.0))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.0, 3.0)
    quantizer.step_done()
    assert quantizer.low.item() == pytest.approx(-1 + 0.01 * -2)
    assert quantizer.high.item() == pytest.approx(3 + 0.01 * 2)
    quantizer.step_done()
    assert quantizer.high.item() == pytest.approx(3.02)
    quantizer.eval()(d(-9.0), ONE_ATOM)
    quantizer.step_done()
    assert quantizer.low.item() == pytest.approx(-1.02)


def test_a_range_on_one_side_of_zero_is_stretched_to_it() -> None:
    quantizer = calibrated("moving-range", d(1.0, 3.0), bits=2)
    assert quantizer.low.item() == 0
    assert torch.equal(quantizer(d(0.0, 3.0), ONE_ATOM), d(0, 3))


def test_percentiles_leave_outliers_out() -> None:
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    quantizer = calibrated("percentile", torch.cat((x, d(100.0))))
    assert quantizer.high.item() == pytest.approx(1.0, abs=2e-3)
    assert quantizer.low.item() == pytest.approx(-0.998, abs=1e-3)
    coarse = calibrated("percentile", x, bits=4)
    assert coarse.high.item() == pytest.approx(0.98, abs=1e-3)


# --- PACT: low = −1, high = 2, b = 2: S = 1, Z = 1, values −1, 0, 1, 2.


def test_pact_clips_where_it_learned_to() -> None:
    quantizer = scalar("pact", bits=2).eval()
    quantizer.low.data.fill_(-1.0)
    quantizer.high.data.fill_(2.0)
    x = d(-3.0, -0.7, 0.4, 1.6, 2.5).requires_grad_()
    rounded = quantizer(x, ONE_ATOM)
    assert torch.equal(rounded, d(-1, -1, 0, 2, 2))
    g = d(1, 2, 3, 4, 5)
    dx, low, high = torch.autograd.grad((rounded * g).sum(), (x, quantizer.low, quantizer.high))
    assert torch.equal(dx, d(0, 2, 3, 4, 0))
    assert (low.item(), high.item()) == (1.0, 5.0)
    penalty = quantizer.penalty()
    (decay,) = torch.autograd.grad(penalty, quantizer.high)
    assert penalty.item() == pytest.approx(1e-4 * 5)
    assert decay.item() == pytest.approx(1e-4 * 4)


def test_pact_starts_at_percentiles() -> None:
    x = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    quantizer = calibrated("pact", x)
    assert quantizer.low.item() == pytest.approx(-0.997, abs=1e-4)
    assert quantizer.high.item() == pytest.approx(1.997, abs=1e-4)


# --- DoReFa activations: R = 4 (power of two above 3), b = 3: steps of 4/3.


def test_dorefa_activations_have_a_fixed_reach() -> None:
    quantizer = calibrated("fixed", d(-3.0, 1.0), bits=3)
    assert quantizer.reach.item() == 4.0
    assert not list(quantizer.parameters())
    x = d(-9.0, -0.7, 0.6, 2.1, 4.5)
    torch.testing.assert_close(quantizer(x, ONE_ATOM), d(-12, -4, 0, 8, 12) / 3)
    assert torch.equal(gradients(quantizer, x, d(1, 2, 3, 4, 5)), d(0, 2, 3, 4, 0))


# --- LSQ: 3 bits, s = 0.5: codes −4 … 3.


def test_lsq_activations_learn_their_step() -> None:
    quantizer = calibrated("lsq", d(-1.0, 2.0, 0.0, 3.0), bits=3)
    assert quantizer.step.item() == pytest.approx(2 * 1.5 / 3**0.5)
    quantizer.step.data.fill_(0.5)
    x = d(0.3, -0.74, 9.0, -9.0).requires_grad_()
    rounded = quantizer(x, ONE_ATOM)
    assert torch.equal(rounded, d(0.5, -0.5, 1.5, -2.0))
    dx, step = torch.autograd.grad(rounded.sum(), (x, quantizer.step))
    assert torch.equal(dx, d(1, 1, 0, 0))
    slope = (1 - 0.6) + (-1 + 1.48) + 3 - 4
    assert step.item() == pytest.approx(slope / (4 * 3) ** 0.5)


def test_tokens_have_a_step_each_and_lose_the_largest_by_one() -> None:
    quantizer = scalar("token", bits=3)
    x = torch.stack((d(4.0, -1.4, 0.6), d(-0.4, 0.1, 0.0)))
    context = Context(torch.tensor([0, 0]))
    torch.testing.assert_close(quantizer(x, context), torch.stack((d(3, -1, 1), d(-0.4, 0.1, 0.0))))
    x = x.requires_grad_()
    (found,) = torch.autograd.grad(quantizer(x, context).sum(), x)
    assert torch.equal(found, torch.ones_like(x))


@pytest.mark.parametrize("name", ["moving-range", "percentile", "pact", "fixed", "lsq", "token"])
def test_force_losses_can_differentiate_activations_twice(name: str) -> None:
    x = torch.linspace(-1, 1, 11, dtype=torch.float64)
    quantizer = calibrated(name, x)
    inside = x[2:-2].clone().requires_grad_()
    (force,) = torch.autograd.grad(
        quantizer(inside, ONE_ATOM).pow(3).sum(), inside, create_graph=True
    )
    (second,) = torch.autograd.grad(force.square().sum(), inside)
    torch.testing.assert_close(second, 36 * quantizer(inside, ONE_ATOM).detach() ** 3)


# --- Weights.


def test_jacob_weights_keep_zero_and_their_ends() -> None:
    # 3 bits, q from 1 to 7: S = (2.4 − (−0.6))/6 = 0.5, offset = 3 + round(−1.2) = 2.
    w = torch.stack((d(-0.6, 0.0), d(0.8, 2.4)))
    quantizer = weight("affine", w, bits=3)
    codes, steps = quantizer.codes(w)
    assert steps.item() == pytest.approx(0.5)
    assert quantizer.offsets(w).item() == 2
    assert codes.tolist() == [[-3, -2], [0, 3]]
    torch.testing.assert_close(quantizer(w), torch.stack((d(-0.5, 0.0), d(1.0, 2.5))))
    w = w.requires_grad_()
    (found,) = torch.autograd.grad(quantizer(w).sum(), w)
    assert torch.equal(found, torch.ones_like(w))


def test_dorefa_weights_follow_the_equation() -> None:
    w = torch.stack((d(-1.0, 0.0), d(0.3, 0.8)))
    quantizer = weight("dorefa", w, bits=2)
    unit = torch.tanh(w) / (2 * torch.tanh(d(1.0))) + 0.5
    expected = 2 * torch.round(3 * unit) / 3 - 1
    torch.testing.assert_close(expected, torch.stack((d(-3, 1), d(1, 3))) / 3)
    torch.testing.assert_close(quantizer(w), expected)
    codes, steps = quantizer.codes(w)
    assert codes.tolist() == [[-2, 0], [0, 1]]
    torch.testing.assert_close(quantizer.dequantize(codes, steps, quantizer.offsets(w)), expected)
    # ∂ŵ/∂w = (1 − tanh² w)/max|tanh| off the maximum, whose own derivative the maximum cancels.
    w = w.requires_grad_()
    row = torch.autograd.grad(quantizer(w)[1, 1], w)[0]
    largest = torch.tanh(d(1.0)).item()
    t = torch.tanh(d(0.8)).item()
    assert row[1, 1].item() == pytest.approx((1 - t**2) / largest)
    assert row[0, 0].item() == pytest.approx(t / largest**2 * (1 - largest**2))
    assert row[1, 0].item() == 0


def test_sawb_clips_by_the_published_coefficients() -> None:
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quantizer = weight("sawb", w, bits=4)
    reach = 12.68 * w.square().mean().sqrt() - 12.80 * w.abs().mean()
    assert reach.item() == pytest.approx(2.4, abs=0.2)
    _, steps = quantizer.codes(w)
    assert steps.item() == pytest.approx(reach.item() / 7)
    assert quantizer(w).max().item() == pytest.approx(reach.item())
    w = w.requires_grad_()
    (found,) = torch.autograd.grad(quantizer(w).sum(), w)
    assert torch.equal(found, torch.ones_like(w))
    with pytest.raises(ConfigError, match="2, 4 or 8 bits, not 5"):
        weight("sawb", w, bits=5)


def test_sawb_never_reaches_beyond_the_largest_weight() -> None:
    w = torch.stack((d(1.0, 1.0), d(-1.0, 1.0)))
    quantizer = weight("sawb", w, bits=8)
    torch.testing.assert_close(quantizer(w), w)


def test_lsq_weights_start_and_learn_as_published() -> None:
    w = torch.stack((d(0.3, -0.9), d(0.5, 1.5)))
    quantizer = weight("lsq-linear", w, bits=3)
    assert quantizer.step.item() == pytest.approx(2 * 0.8 / 3**0.5)
    quantizer.step.data.fill_(0.4)
    w = w.requires_grad_()
    rounded = quantizer(w)
    torch.testing.assert_close(rounded, torch.stack((d(0.4, -0.8), d(0.4, 1.2))))
    dw, step = torch.autograd.grad(rounded.sum(), (w, quantizer.step))
    assert torch.equal(dw, torch.stack((d(1, 1), d(1, 0))))
    slope = (1 - 0.75) + (-2 + 2.25) + (1 - 1.25) + 3
    assert step.item() == pytest.approx(slope / (4 * 3) ** 0.5)


def test_absmax_weights_by_channel() -> None:
    w = torch.stack((d(0.7, -0.25), d(-7.0, 3.4)))
    quantizer = weight("absmax", w, bits=4, granularity="channel")
    codes, steps = quantizer.codes(w)
    torch.testing.assert_close(steps.flatten(), d(0.1, 1.0))
    assert codes.tolist() == [[7, -2], [-7, 3]]


def test_min_max_weights_in_groups_pass_every_gradient() -> None:
    w = torch.stack((d(0.8, -0.21, 4.0, -8.0),))
    quantizer = weight("min-max", w, bits=4, granularity="group", group_size=2)
    codes, steps = quantizer.codes(w)
    torch.testing.assert_close(steps, torch.stack((d(0.1, 1.0),)))
    assert codes.tolist() == [[7, -2, 4, -8]]
    w = w.requires_grad_()
    (found,) = torch.autograd.grad(quantizer(w).sum(), w)
    assert torch.equal(found, torch.ones_like(w))


def test_adaround_begins_unrounded_and_ends_decided() -> None:
    w = torch.stack((d(0.26, -0.74), d(0.9, 1.0)))
    quantizer = weight("adaround", w, bits=4)
    assert isinstance(quantizer, AdaRoundWeights)
    step = quantizer.steps.item()
    assert torch.equal(quantizer(w), step * torch.round(w / step).clamp(-8, 7))
    quantizer.soft = True
    torch.testing.assert_close(quantizer(w), w.clamp(max=7 * step))
    # Drive one rounding down against the nearest code, and the others stay.
    quantizer.choice.data[0, 0] = -5.0
    quantizer.soft = False
    assert quantizer(w)[0, 0].item() == pytest.approx(step * (w[0, 0] / step).floor().item())


def test_adaround_gradient_and_indecision_by_hand() -> None:
    w = torch.stack((d(0.3, 0.7),))
    quantizer = weight("adaround", w, bits=4)
    quantizer.steps.fill_(1.0)
    quantizer.choice.data.copy_(torch.stack((d(0.0, 4.0),)))
    share = quantizer.share().detach()
    torch.testing.assert_close(share, torch.stack((d(0.5, 1.0),)))
    quantizer.soft = True
    (found,) = torch.autograd.grad(quantizer(w).sum(), quantizer.choice)
    torch.testing.assert_close(found, torch.stack((d(1.2 * 0.25, 0.0),)))
    assert quantizer.indecision(2.0).item() == pytest.approx(1.0)


def test_adaround_searches_its_step() -> None:
    w = torch.cat((torch.randn(1, 400, dtype=torch.float64), torch.tensor([[6.0]]).double()), 1)
    quantizer = weight("adaround", w, bits=4)

    def loss(step: float) -> float:
        rounded = step * torch.round(w / step).clamp(-8, 7)
        return float((rounded - w).abs().pow(2.4).sum())

    candidates = [6.0 * k / 100 / 7 for k in range(1, 101)]
    assert loss(quantizer.steps.item()) == pytest.approx(min(map(loss, candidates)))


# --- What holds for all of them.


@pytest.mark.parametrize(
    "name", ["affine", "dorefa", "sawb", "lsq-linear", "absmax", "min-max", "adaround"]
)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_weights_are_codes_that_fit_their_bits(name: str, bits: int, granularity: str) -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
    w[2] = 0
    quantizer = weight(name, w, bits, granularity=granularity, group_size=16)
    codes, steps = quantizer.codes(w)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1
    assert (steps > 0).all()
    rounded = quantizer(w)
    assert torch.equal(rounded, quantizer.dequantize(codes, steps, quantizer.offsets(w)))
    assert rounded.isfinite().all()
    if name != "dorefa":  # whose tanh bends weights before it rounds them
        assert (rounded - w).norm() / w.norm() < {4: 0.3, 8: 0.1}[bits]


def test_components_of_vectors_are_rounded_as_scalars() -> None:
    spec = VectorSpec(codec="components", frame="lab", scale="lsq", magnitude_bits=3)
    quantizer = VectorQuantizer(spec, 1).double()
    assert isinstance(quantizer.codec, ComponentCodec)
    quantizer.codec.quantizer.step.data.fill_(0.5)
    v = torch.stack((d(0.3, 9.0), d(-0.74, -9.0), d(0.0, 0.2))).unsqueeze(0)
    expected = torch.stack((d(0.5, 1.5), d(-0.5, -2.0), d(0.0, 0.0))).unsqueeze(0)
    assert torch.equal(quantizer(v, ONE_ATOM), expected)
    assert torch.equal(quantizer.codec(v), expected)


def test_scales_that_a_codec_does_not_know_are_named() -> None:
    with pytest.raises(ConfigError, match="'mddq' know no scale 'lsq': known are dynamic, static"):
        VectorQuantizer(VectorSpec(scale="lsq"), 1)
    with pytest.raises(ConfigError, match="no scalar quantiser 'lsk': did you mean 'lsq'"):
        VectorQuantizer(VectorSpec(codec="components", scale="lsk"), 1)


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_elements_stay_float_with_their_probability(keep: float) -> None:
    quantizer = calibrated("fixed", d(-1.0, 1.0), bits=2)
    quantizer.keep = keep
    x = torch.full((4000,), 0.4, dtype=torch.float64)
    kept = (quantizer(x, ONE_ATOM) == x).double().mean().item()
    assert kept == pytest.approx(keep, abs=0.05)


def test_protected_atoms_stay_float() -> None:
    quantizer = calibrated("fixed", d(-1.0, 1.0), bits=2)
    x = torch.full((2, 3), 0.4, dtype=torch.float64)
    context = Context(torch.tensor([0, 0]), protected=torch.tensor([True, False]))
    assert quantizer(x, context)[:, 0].tolist() == [0.4, 0.0]
    heads = x.unsqueeze(-1).expand(2, 3, 5)
    assert quantizer(heads, context)[:, 2, 4].tolist() == [0.4, 0.0]
    per_edge = torch.full((7, 3), 0.4, dtype=torch.float64)
    assert not quantizer(per_edge, context).any()
