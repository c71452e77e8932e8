"""The quantisers that the papers compare with, as their authors describe them.

They were made for networks without vectors, so their recipes round vectors component by component.
What a network does with them besides (parts of it left float, outliers moved into weights, blocks
fitted one by one) is in ``protection``, ``smoothing`` and ``training.reconstruction``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from equibit.quantization.quantizers import (
    _TINY,
    ScalarQuantizer,
    WeightQuantizer,
    expand_steps,
    group_channels,
    learned_step_quantize,
    straight_through,
)
from equibit.quantization.recipes import ScalarSpec, WeightSpec
from equibit.structures.errors import ConfigError


class RangeQuantizer(ScalarQuantizer):
    """Affine codes of a range: x̂ = S (q − Z), S = (high − low)/(2^b − 1), Z = round(−low/S).

    Zero is exactly representable. ∂x̂/∂x = 1 within the range and 0 outside, where the limits get the
    derivative if they are learned. Subclasses say what the limits are.
    """

    def limits(self) -> tuple[Tensor, Tensor]:
        """low ≤ 0 and high ≥ 0. Shape: []."""
        raise NotImplementedError

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q − 2^(b−1), and S."""
        step, zero = self._step_and_zero()
        code = torch.clamp(torch.round(x / step) + zero, 0, 2**self.spec.bits - 1)
        return code - 2 ** (self.spec.bits - 1), step

    def dequantize(self, codes: Tensor, step: Tensor) -> Tensor:
        _, zero = self._step_and_zero()
        return step * (codes + (2 ** (self.spec.bits - 1) - zero))

    def round(self, x: Tensor) -> Tensor:
        low, high = self.limits()
        return straight_through(torch.clamp(x, low, high), self.dequantize(*self.codes(x.detach())))

    def _step_and_zero(self) -> tuple[Tensor, Tensor]:
        low, high = (limit.detach() for limit in self.limits())
        step = (high - low).clamp_min(_TINY) / (2**self.spec.bits - 1)
        return step, torch.round(-low / step)


class MovingRangeQuantizer(RangeQuantizer, name="moving-range"):
    """The smallest and largest input, averaged over steps of training (Jacob et al. 2018, Sec. 3.1).

    A step of training counts once it is done, see ``step_done``.

    Attributes:
        low, high: the averages. Shape: [].
    """

    momentum: ClassVar[float] = 0.01
    low: Tensor
    high: Tensor

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        super().__init__(spec, channels, n_species)
        self.register_buffer("low", torch.tensor(-1.0))
        self.register_buffer("high", torch.tensor(1.0))
        self._fitted = False
        self._seen: tuple[Tensor, Tensor] | None = None

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range of one batch. Shape: [...] → [], []."""
        return x.amin(), x.amax()

    def limits(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high

    def round(self, x: Tensor) -> Tensor:
        if self.training:
            # Buffers cannot change inside the transform that takes forces.
            self._seen = self.extremes(x.detach())
        return super().round(x)

    def step_done(self) -> None:
        if self._seen is not None:
            self._follow(*self._seen, self.momentum)
        self._seen = None

    def fit(self, x: Tensor) -> None:
        self._follow(*self.extremes(x), self.momentum if self._fitted else 1.0)
        self._fitted = True

    def _follow(self, low: Tensor, high: Tensor, momentum: float) -> None:
        with torch.no_grad():
            self.low.lerp_(low.clamp(max=0.0), momentum)
            self.high.lerp_(high.clamp(min=0.0), momentum)


class PercentileQuantizer(MovingRangeQuantizer, name="percentile"):
    """A range that leaves out a share of the values at either end (Degree-Quant, Tailor et al. 2020).

    The share is 0.001 at 8 bits and more, 0.01 below.
    """

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = 0.001 if self.spec.bits >= 8 else 0.01
        ends = torch.quantile(x.flatten(), torch.tensor([share, 1 - share]).to(x))
        return ends[0], ends[1]


class PACTQuantizer(RangeQuantizer, name="pact"):
    """Learned clipping, y = clip(x, low, high) (Choi et al. 2018, Eqs. 1-3, for both signs).

    ∂x̂/∂high = 1 where x ≥ high, ∂x̂/∂low = 1 where x ≤ low. Limits start at the 99.9th percentiles and
    are drawn to zero by an L2 term in the loss.

    Attributes:
        low, high: limits. Shape: [].
    """

    decay: ClassVar[float] = 1e-4

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        super().__init__(spec, channels, n_species)
        self.low = nn.Parameter(torch.tensor(-1.0))
        self.high = nn.Parameter(torch.tensor(1.0))
        self._fitted = False

    def limits(self) -> tuple[Tensor, Tensor]:
        return self.low.clamp(max=0.0), self.high.clamp(min=0.0)

    def penalty(self) -> Tensor:
        return self.decay * (self.low.square() + self.high.square())

    def fit(self, x: Tensor) -> None:
        ends = torch.quantile(x.flatten(), torch.tensor([0.001, 0.999]).to(x))
        low, high = ends[0].clamp(max=0.0), ends[1].clamp(min=0.0)
        if self._fitted:
            low, high = (
                torch.minimum(low, self.low.detach()),
                torch.maximum(high, self.high.detach()),
            )
        self.low.data.copy_(low)
        self.high.data.copy_(high)
        self._fitted = True


class FixedQuantizer(ScalarQuantizer, name="fixed"):
    """x̂ = R q_k(clip(x/R, −1, 1)) with a range that is never learned (DoReFa, Zhou et al. 2016).

    The authors clip to [0, 1]; for signed activations R is the power of two that holds the inputs of
    the calibration. The derivative is 1 inside and 0 outside.

    Attributes:
        reach: R. Shape: [].
    """

    reach: Tensor

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        super().__init__(spec, channels, n_species)
        self.register_buffer("reach", torch.tensor(1.0))
        self._largest = 0.0

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = self.reach / self.highest
        return torch.round(torch.clamp(x / step, -self.highest, self.highest)), step

    def round(self, x: Tensor) -> Tensor:
        clipped = torch.clamp(x, -self.reach, self.reach)
        return straight_through(clipped, self.dequantize(*self.codes(x.detach())))

    def fit(self, x: Tensor) -> None:
        self._largest = max(self._largest, float(x.abs().max()))
        if self._largest > 0:
            self.reach.copy_(torch.exp2(torch.ceil(torch.log2(torch.tensor(self._largest)))))


class LearnedStepQuantizer(ScalarQuantizer, name="lsq"):
    """LSQ as published (Esser et al. 2020): the step itself is learned, from 2⟨|x|⟩/√Q_P on.

    Attributes:
        step: s. Shape: [].
    """

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        super().__init__(spec, channels, n_species)
        self.lowest = -self.highest - 1
        self.step = nn.Parameter(torch.tensor(2.0**-spec.bits))
        self._sum, self._count = 0.0, 0

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = self._positive().detach()
        return torch.round(torch.clamp(x / step, self.lowest, self.highest)), step

    def round(self, x: Tensor) -> Tensor:
        return learned_step_quantize(
            x, self._positive(), self.lowest, self.highest, max(1, x.shape[-1])
        )

    def fit(self, x: Tensor) -> None:
        self._sum += float(x.abs().sum())
        self._count += x.numel()
        if self._sum > 0:
            self.step.data.fill_(2 * self._sum / self._count / self.highest**0.5)

    def _positive(self) -> Tensor:
        return self.step.clamp_min(1e-8)


class TokenQuantizer(ScalarQuantizer, name="token"):
    """One step per atom, 2 max|x|/2^b, codes −2^(b−1) … 2^(b−1) − 1 (ZeroQuant, Yao et al. 2022).

    The largest positive input is cut by one step. The derivative is 1 everywhere.
    """

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = self.highest + 1
        step = x.abs().amax(-1, keepdim=True).clamp_min(_TINY) / half
        return torch.clamp(torch.round(x / step), -half, self.highest), step


class AffineWeights(WeightQuantizer, name="affine"):
    """ŵ = S (q − Z) over the range of the weights, q ≥ 1, zero exact (Jacob et al. 2018, Sec. 3).

    The range is that of the current weights, so nothing is clipped and the derivative is 1.
    """

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        steps, offsets = self._steps_and_offsets(weight)
        ratio = torch.round(weight / expand_steps(steps, weight.shape, self.spec))
        codes = ratio - expand_steps(offsets, weight.shape, self.spec)
        half = 2 ** (self.spec.bits - 1)
        return torch.clamp(codes, 1 - half, half - 1), steps

    def offsets(self, weight: Tensor) -> Tensor:
        return self._steps_and_offsets(weight)[1]

    def _steps_and_offsets(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        grouped = group_channels(weight, self.spec)
        low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
        half = 2 ** (self.spec.bits - 1)
        steps = (high - low).clamp_min(_TINY) / (2 * half - 2)
        return steps, half - 1 + torch.round(low / steps)


class DoReFaWeights(WeightQuantizer, name="dorefa"):
    """ŵ = M (2 q_k(tanh w/(2 max|tanh w|) + ½) − 1), q_k(u) = round((2^k − 1)u)/(2^k − 1).

    (Zhou et al. 2016, Eq. 9), with M = max|w|, a constant of the backward pass, so that a trained
    network keeps its magnitude. The rounding has derivative 1; tanh and maximum are differentiated.
    """

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        steps = 2 * group_channels(weight, self.spec).abs().amax(-1) / self._levels
        levels = torch.round(self._levels * self._unit(weight))
        return levels - 2 ** (self.spec.bits - 1), steps.clamp_min(_TINY)

    def offsets(self, weight: Tensor) -> Tensor:
        # 2n/(2^k − 1) − 1 is half a level off zero.
        return torch.full_like(group_channels(weight, self.spec)[..., 0], 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        values = weight.detach()
        largest = expand_steps(
            group_channels(values, self.spec).abs().amax(-1), weight.shape, self.spec
        )
        smooth = largest * (2 * self._unit(weight) - 1)
        rounded = self.dequantize(*self.codes(values), self.offsets(values))
        return straight_through(smooth, rounded)

    def _unit(self, weight: Tensor) -> Tensor:
        """tanh w/(2 max|tanh w|) + ½. Shape: unchanged."""
        bounded = torch.tanh(weight)
        largest = group_channels(bounded, self.spec).abs().amax(-1).clamp_min(_TINY)
        return bounded / (2 * expand_steps(largest, weight.shape, self.spec)) + 0.5

    @property
    def _levels(self) -> int:
        return 2**self.spec.bits - 1


class SAWBWeights(WeightQuantizer, name="sawb"):
    """Clipping from statistics, c₁√E[w²] − c₂E|w| (SAWB, Choi et al. 2018); the derivative is 1."""

    coefficients: ClassVar[dict[int, tuple[float, float]]] = {
        2: (3.12, 2.064),
        4: (12.68, 12.80),
        8: (31.76, 35.04),
    }

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__(spec, weight)
        if spec.bits not in self.coefficients:
            raise ConfigError(f"SAWB weights have 2, 4 or 8 bits, not {spec.bits}")

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        grouped = group_channels(weight, self.spec)
        c1, c2 = self.coefficients[self.spec.bits]
        reach = c1 * grouped.square().mean(-1).sqrt() - c2 * grouped.abs().mean(-1)
        # Far from a bell curve the formula fails; no clipping needs more than the largest weight.
        largest = grouped.abs().amax(-1)
        reach = torch.where((reach > 0) & (reach < largest), reach, largest)
        steps = reach.clamp_min(_TINY) / self.highest
        ratio = weight / expand_steps(steps, weight.shape, self.spec)
        return torch.round(torch.clamp(ratio, -self.highest, self.highest)), steps


class LinearStepWeights(WeightQuantizer, name="lsq-linear"):
    """LSQ as published (Esser et al. 2020): steps learned as they are, from 2⟨|w|⟩/√Q_P on.

    Attributes:
        step: Shape: of the steps.
    """

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__(spec, weight)
        grouped = group_channels(weight.detach(), spec)
        self.count = grouped.shape[-1]
        start = 2 * grouped.abs().mean(-1) / self.highest**0.5
        self.step = nn.Parameter(start.clamp_min(1e-8))

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        steps = self._positive().detach()
        ratio = weight / expand_steps(steps, weight.shape, self.spec)
        return torch.round(torch.clamp(ratio, self.lowest, self.highest)), steps

    def forward(self, weight: Tensor) -> Tensor:
        steps = expand_steps(self._positive(), weight.shape, self.spec)
        return learned_step_quantize(weight, steps, self.lowest, self.highest, self.count)

    def _positive(self) -> Tensor:
        return self.step.clamp_min(1e-8)


class AbsMaxWeights(WeightQuantizer, name="absmax"):
    """Steps max|w|/(2^(b−1) − 1), nothing learned (SmoothQuant, Xiao et al. 2023)."""

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = group_channels(weight, self.spec).abs().amax(-1)
        steps = largest.clamp_min(_TINY) / self.highest
        return torch.round(weight / expand_steps(steps, weight.shape, self.spec)), steps


class MinMaxWeights(WeightQuantizer, name="min-max"):
    """Steps 2 max|w|/2^b, codes −2^(b−1) … 2^(b−1) − 1 (ZeroQuant, Yao et al. 2022).

    The derivative is 1, for the clipped weight too.
    """

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        half = 2 ** (self.spec.bits - 1)
        steps = group_channels(weight, self.spec).abs().amax(-1).clamp_min(_TINY) / half
        ratio = torch.round(weight / expand_steps(steps, weight.shape, self.spec))
        return torch.clamp(ratio, -half, half - 1), steps


class AdaRoundWeights(WeightQuantizer, name="adaround"):
    """floor(w/s) + h, h learned between 0 and 1 (AdaRound, Nagel et al. 2020, Eqs. 22-24).

    h = clip(1.2 σ(a) − 0.1, 0, 1) starts at the fraction of w/s, so that weights begin unrounded. At
    the end each is rounded up where a ≥ 0. Steps are those of 100 candidates with the least Σ|w − ŵ|^2.4.

    Attributes:
        choice: a. Shape: of the weight.
        steps: Shape: see ``WeightQuantizer``.
        soft: h is used as it is, and learns; else rounding is decided.
    """

    candidates: ClassVar[int] = 100
    power: ClassVar[float] = 2.4
    steps: Tensor

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__(spec, weight)
        self.soft = False
        weight = weight.detach()
        self.register_buffer("steps", self._searched(weight))
        ratio = weight / expand_steps(self.steps, weight.shape, spec)
        fraction = ratio - torch.floor(ratio)
        self.choice = nn.Parameter(torch.logit((fraction + 0.1) / 1.2))

    def share(self) -> Tensor:
        """h. Shape: of the weight."""
        return torch.clamp(1.2 * torch.sigmoid(self.choice) - 0.1, 0, 1)

    def indecision(self, sharpness: Tensor | float) -> Tensor:
        """Σ (1 − |2h − 1|^β), 0 once every h is 0 or 1. Shape: → []."""
        return (1 - (2 * self.share() - 1).abs().pow(sharpness)).sum()

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.floor(weight / expand_steps(self.steps, weight.shape, self.spec))
        return torch.clamp(ratio + (self.choice >= 0), self.lowest, self.highest), self.steps

    def forward(self, weight: Tensor) -> Tensor:
        if not self.soft:
            return super().forward(weight)
        steps = expand_steps(self.steps, weight.shape, self.spec)
        codes = torch.floor(weight.detach() / steps) + self.share()
        return steps * torch.clamp(codes, self.lowest, self.highest)

    def _searched(self, weight: Tensor) -> Tensor:
        grouped = group_channels(weight, self.spec)
        largest = grouped.abs().amax(-1).clamp_min(_TINY)
        best, least = largest / self.highest, torch.full_like(largest, torch.inf)
        for candidate in range(1, self.candidates + 1):
            steps = (largest * (candidate / self.candidates) / self.highest).unsqueeze(-1)
            codes = torch.clamp(torch.round(grouped / steps), self.lowest, self.highest)
            error = (grouped - steps * codes).abs().pow(self.power).sum(-1)
            best = torch.where(error < least, steps.squeeze(-1), best)
            least = torch.minimum(error, least)
        return best
