"""Quantisers of weights and of invariant activations, and the classes users subclass.

A quantiser maps numbers to integer codes and steps, and back: x̂ = step · code. In training, the
straight-through estimator passes gradients as if x̂ were x. It is written with ``detach``, so it can
be differentiated any number of times, as force losses need.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from equibit.networks.context import Context
from equibit.quantization.packing import STEPS_PER_OCTAVE, grid_steps
from equibit.quantization.recipes import ScalarSpec, WeightSpec
from equibit.structures.errors import ConfigError, ModelError

Observation = Literal["means", "ranges"]

_OCTAVES = (-40, 24)
_TINY = 1e-30


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of ``rounded``, exactly, with the derivative of ``x``. Shape: unchanged."""
    return rounded.detach() + (x - x.detach())


def round_through(x: Tensor) -> Tensor:
    """round(x), ties to even, with derivative 1. Odd: round(−x) = −round(x)."""
    return straight_through(x, torch.round(x))


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The value of ``x`` with ``factor`` times its derivative."""
    return x.detach() + factor * (x - x.detach())


def learned_step_quantize(x: Tensor, step: Tensor, lowest: int, highest: int, count: int) -> Tensor:
    """s · round(clip(x/s, −Q_N, Q_P)) with LSQ's derivatives (Esser et al. 2020, Eqs. 1-5).

    ∂x̂/∂x = 1 inside the range, 0 outside; ∂x̂/∂s = round(x/s) − x/s inside, −Q_N or Q_P outside,
    times 1/√(N Q_P) with N elements per step.

    Args:
        x: values.
        step: s > 0, broadcasts against x.
        lowest, highest: −Q_N and Q_P.
        count: N.
    """
    step = scale_gradient(step, (count * highest) ** -0.5)
    return step * round_through(torch.clamp(x / step, lowest, highest))


class Registered:
    """Subclasses declare ``name="..."`` and are then known to recipes under that name."""

    kind: ClassVar[str]
    registry: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.registry[name] = cls

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """The registered subclass.

        Raises:
            ConfigError: nothing of that name; the message offers the closest.
        """
        if name not in cls.registry:
            close = get_close_matches(name, cls.registry, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            known = ", ".join(cls.registry)
            raise ConfigError(f"no {cls.kind} {name!r}: {hint}known are {known}")
        return cls.registry[name]


class ScalarQuantizer(Registered, nn.Module):
    """Rounds invariant activations [..., channels]; subclass it and override ``codes``.

    With species centring, Q(x − μ_Z) + μ_Z is returned, which after a linear layer is an integer
    product plus a bias W μ_Z per species. μ_Z, the mean activation of species Z at calibration, is a
    constant: gradients with respect to x are those of Q alone.

    Attributes:
        spec: bits and options.
        enabled: False passes inputs through untouched.
        observing: what to collect from inputs, which then pass untouched; None in normal use.
        centers: μ, or None. Shape: [species, channels].
        keep: probability that an element stays float, above 0 only while a network is reconstructed.
    """

    kind = "scalar quantiser"
    registry: ClassVar[dict[str, type[Any]]] = {}
    centers: Tensor | None

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        """``n_species`` is given where inputs are per atom, so that they can be centred."""
        super().__init__()
        self.spec = spec
        self.highest = 2 ** (spec.bits - 1) - 1
        self.enabled = True
        self.observing: Observation | None = None
        self.keep = 0.0
        centers = None
        if spec.centered and n_species is not None:
            centers = torch.zeros(n_species, channels)
        self.register_buffer("centers", centers)
        self._sums: Tensor | None = None  # per species: sums of channels, then the count

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Integer-valued codes and steps that broadcast against them. Shape: x → x, [..., 1]."""
        raise NotImplementedError

    def dequantize(self, codes: Tensor, step: Tensor) -> Tensor:
        """x̂ = step · code."""
        return step * codes

    def round(self, x: Tensor) -> Tensor:
        """x̂ with the derivative of x; override it for other derivatives."""
        return straight_through(x, self.dequantize(*self.codes(x.detach())))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.observing is not None:
            self.observe(x.detach(), context)
            return x
        if not self.enabled:
            return x
        if self.centers is None:
            return self._kept(x, self.round(x), context)
        center = self.centers[context.species]
        return self._kept(x, self.round(x - center) + center, context)

    def step_done(self) -> None:
        """Called after each step of training, for what is followed and not learned."""

    def penalty(self) -> Tensor | None:
        """A term of the training's loss, or None."""
        return None

    def _kept(self, x: Tensor, rounded: Tensor, context: Context) -> Tensor:
        """``rounded``, but ``x`` itself where it stays float. Shape: unchanged."""
        if self.keep > 0:
            rounded = torch.where(torch.rand_like(x) < self.keep, x, rounded)
        mask = context.protected
        if mask is not None and x.shape[: mask.ndim] == mask.shape:
            rounded = torch.where(
                mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, rounded
            )
        return rounded

    def observe(self, x: Tensor, context: Context) -> None:
        """Collect what calibration needs: sums per species, then samples for ``fit``."""
        if self.observing == "ranges":
            if self.centers is not None:
                x = x - self.centers[context.species]
            self.fit(x)
        elif self.centers is not None:
            if x.shape[:-1] != context.species.shape:
                raise ModelError(
                    f"cannot centre activations of shape {tuple(x.shape)} by the species of "
                    f"{tuple(context.species.shape)} atoms: list the layer in edge_layers"
                )
            index = context.species.flatten()
            ones = x.new_ones(index.shape[0], 1)
            rows = torch.cat((x.reshape(index.shape[0], -1), ones), -1)
            sums = rows.new_zeros(self.centers.shape[0], rows.shape[1]).index_add_(0, index, rows)
            self._sums = sums if self._sums is None else self._sums + sums

    def fit(self, x: Tensor) -> None:
        """One calibration batch of inputs, already centred; stateless quantisers ignore it."""

    def finish(self) -> None:
        """End of a calibration pass."""
        if self.observing == "means" and self._sums is not None:
            means = self._sums[:, :-1] / self._sums[:, -1:].clamp_min(1)
            # Any μ is exact, so take one that a byte and a shared power of two can hold.
            step = torch.exp2(torch.ceil(torch.log2(means.abs().max().clamp_min(_TINY) / 127)))
            self.centers = torch.round(means / step) * step
            self._sums = None
        self.observing = None

    def extra_repr(self) -> str:
        return repr(self.spec)


class DynamicQuantizer(ScalarQuantizer, name="dynamic"):
    """One step per row, max|x|/Q, found anew for each atom: nothing is clipped or learned.

    The step is a constant of the backward pass, so ∂x̂/∂x = 1 for every element, the largest too.
    """

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = x.abs().amax(-1, keepdim=True).clamp_min(_TINY) / self.highest
        return torch.round(x / step), step


class StaticQuantizer(ScalarQuantizer, name="static"):
    """One learned step for all rows (LSQ), started where calibration inputs lose least.

    Attributes:
        log2_step: log₂ s, so that s stays positive and learns in relative terms. Shape: [].
    """

    def __init__(self, spec: ScalarSpec, channels: int, n_species: int | None = None) -> None:
        super().__init__(spec, channels, n_species)
        self.log2_step = nn.Parameter(torch.tensor(-float(spec.bits - 2)))
        self._samples = Samples()

    @property
    def step(self) -> Tensor:
        return torch.exp2(self.log2_step)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = self.step.detach()
        return torch.round(torch.clamp(x / step, -self.highest, self.highest)), step

    def round(self, x: Tensor) -> Tensor:
        return learned_step_quantize(x, self.step, -self.highest, self.highest, x.shape[-1])

    def fit(self, x: Tensor) -> None:
        self._samples.add(x)

    def finish(self) -> None:
        if self.observing == "ranges":
            fitted = self._samples.best_log2_step(-self.highest, self.highest)
            if fitted is not None:
                self.log2_step.data.fill_(fitted)
        super().finish()


class Samples:
    """A bounded, deterministic sample of calibration values."""

    limit = 1 << 16

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Keep an even selection and the largest magnitude of ``x``."""
        flat = x.detach().flatten()
        if flat.numel() == 0:
            return
        stride = -(-flat.numel() // 4096)
        self._parts.append(torch.cat((flat[::stride], flat[flat.abs().argmax()].reshape(1))))

    def best_log2_step(self, lowest: int, highest: int) -> float | None:
        """log₂ of the step with the least squared error, or None without non-zero samples."""
        if not self._parts:
            return None
        values = torch.cat(self._parts).double()
        self._parts = []
        values = values[:: -(-values.numel() // self.limit)]
        if not values.any():
            return None
        return best_grid_steps(values.reshape(1, -1), lowest, highest).item() / STEPS_PER_OCTAVE


def best_grid_steps(values: Tensor, lowest: int, highest: int) -> Tensor:
    """k minimising Σ (x − x̂)² with step 2^(k/16), per row, from the full range down three octaves.

    Rows of zeros get the step of the largest row. Shape: [rows, n] → [rows] int64.
    """
    extreme = values.abs().amax(-1)
    extreme = torch.where(extreme > 0, extreme, extreme.max().clamp_min(_TINY))
    first = torch.ceil(STEPS_PER_OCTAVE * torch.log2(extreme / highest)).long()
    best, least = first, torch.full_like(extreme, torch.inf)
    for down in range(3 * STEPS_PER_OCTAVE):
        step = torch.exp2((first - down) / STEPS_PER_OCTAVE).to(values).unsqueeze(-1)
        error = values - step * torch.round(torch.clamp(values / step, lowest, highest))
        error = error.square().sum(-1)
        best = torch.where(error < least, first - down, best)
        least = torch.minimum(error, least)
    return best


def step_grid() -> Tensor:
    """All steps that ``LSQWeightQuantizer`` can take, ascending, float32."""
    first, last = (STEPS_PER_OCTAVE * octave for octave in _OCTAVES)
    return torch.from_numpy(grid_steps(np.arange(first, last + 1)))


class WeightQuantizer(Registered, nn.Module):
    """Rounds a weight [..., out, in]; subclass it and override ``codes``.

    Steps have the shape [..., out, groups], or [1, …] for one per tensor. A quantiser whose numbers
    are step · (code + offset) overrides ``offsets``.

    Attributes:
        spec: bits, granularity, method.
        shape: of the weight.
        lowest, highest: range of codes, two's complement for 4 bits and fewer, ±127 for 8.
    """

    kind = "weight quantiser"
    registry: ClassVar[dict[str, type[Any]]] = {}

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.shape = tuple(weight.shape)
        self.highest = 2 ** (spec.bits - 1) - 1
        # The most negative 8-bit code would overflow the engine's pairwise int16 sums.
        self.lowest = -self.highest if spec.bits == 8 else -self.highest - 1
        self.enabled = True

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer-valued codes of the weight's shape, and steps. Shape: see the class."""
        raise NotImplementedError

    def offsets(self, weight: Tensor) -> Tensor | None:
        """What is added to codes before they are multiplied by their step. Shape: of the steps."""
        return None

    def dequantize(self, codes: Tensor, steps: Tensor, offsets: Tensor | None = None) -> Tensor:
        """ŵ = step · (code + offset), each step serving its group."""
        return weight_of_codes(codes, steps, offsets, self.spec)

    def forward(self, weight: Tensor) -> Tensor:
        values = weight.detach()
        rounded = self.dequantize(*self.codes(values), self.offsets(values))
        return straight_through(weight, rounded)

    def extra_repr(self) -> str:
        return repr(self.spec)


class LSQWeightQuantizer(WeightQuantizer, name="lsq"):
    """Learned steps (LSQ) on the grid 2^(k/16), started at the least squared error.

    A grid of 4.4 % spacing costs no accuracy, because codes and steps are fitted together, and lets
    a step be stored exactly in one byte.

    Attributes:
        log2_step: log₂ of the steps before they are rounded to the grid.
    """

    grid: Tensor

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__(spec, weight)
        grouped = group_channels(weight.detach(), spec)
        steps = best_grid_steps(grouped.flatten(0, -2), self.lowest, self.highest)
        shape = grouped.shape[:-1]
        self.log2_step = nn.Parameter((steps / STEPS_PER_OCTAVE).reshape(shape).to(weight.dtype))
        self.register_buffer("grid", step_grid().to(weight.dtype), persistent=False)
        self.count = grouped.shape[-1]

    def steps(self) -> Tensor:
        """The steps, on the grid, with derivatives with respect to ``log2_step``."""
        index = torch.round(STEPS_PER_OCTAVE * (self.log2_step.detach() - _OCTAVES[0])).long()
        exact = self.grid[index.clamp(0, self.grid.shape[0] - 1)]
        return exact * torch.exp2(self.log2_step - self.log2_step.detach())

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.steps().detach()
        ratio = weight / expand_steps(steps, weight.shape, self.spec)
        return torch.round(torch.clamp(ratio, self.lowest, self.highest)), steps

    def forward(self, weight: Tensor) -> Tensor:
        steps = expand_steps(self.steps(), weight.shape, self.spec)
        return learned_step_quantize(weight, steps, self.lowest, self.highest, self.count)


def group_channels(weight: Tensor, spec: WeightSpec) -> Tensor:
    """Weights that share a step, side by side, padded with zeros.

    Shape: [..., out, in] → [..., out, groups, members]; per tensor [1, …, 1, numel].
    """
    if spec.granularity == "tensor":
        return weight.reshape((1,) * weight.ndim + (-1,))
    if spec.granularity == "channel":
        return weight.unsqueeze(-2)
    groups = -(-weight.shape[-1] // spec.group_size)
    padded = nn.functional.pad(weight, (0, groups * spec.group_size - weight.shape[-1]))
    return padded.unflatten(-1, (groups, spec.group_size))


def expand_steps(steps: Tensor, shape: torch.Size | tuple[int, ...], spec: WeightSpec) -> Tensor:
    """Steps that broadcast against a weight. Shape: [..., out, groups] → [..., out, in or 1]."""
    if spec.granularity != "group":
        return steps
    return steps.repeat_interleave(spec.group_size, -1)[..., : shape[-1]]


def weight_of_codes(
    codes: Tensor, steps: Tensor, offsets: Tensor | None, spec: WeightSpec
) -> Tensor:
    """ŵ = step · (code + offset). Shape: of the codes."""
    if offsets is not None:
        codes = codes + expand_steps(offsets, codes.shape, spec)
    return codes * expand_steps(steps, codes.shape, spec)
