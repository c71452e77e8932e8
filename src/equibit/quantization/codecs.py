"""What is kept of a vector: codecs, the frame they act in, and their straight-through derivatives.

Vectors are [..., 2ℓ+1, channels], components in the order m = −ℓ … ℓ. Every codec is odd under the
flip of any single component and maps a vanishing component to zero: with these two properties,
rounding in an atom's own axes is exactly equivariant (``docs/quantization.md``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equibit.networks.context import Context
from equibit.quantization.codebooks import Codebook
from equibit.quantization.quantizers import (
    _TINY,
    Registered,
    Samples,
    ScalarQuantizer,
    learned_step_quantize,
    round_through,
    straight_through,
)
from equibit.quantization.recipes import ScalarSpec, VectorSpec
from equibit.structures.errors import ConfigError, ModelError

_SMALLEST = 1e-6  # an atom's largest vector below this counts as noise; its square fits float32


class VectorCodec(Registered, nn.Module):
    """Q₀ of the components it is given; subclass it and override ``codes`` and ``dequantize``.

    Attributes:
        spec: bits and kind of scale.
        degree: ℓ.
        highest: largest magnitude code.
        log2_step: log₂ of the learned step, or None for a dynamic scale. Shape: [].
        scales: what ``spec.scale`` may say; None for anything.
    """

    kind = "vector codec"
    registry: ClassVar[dict[str, type[Any]]] = {}
    scales: ClassVar[tuple[str, ...] | None] = ("dynamic", "static")
    log2_step: nn.Parameter | None

    def __init__(self, spec: VectorSpec, degree: int) -> None:
        super().__init__()
        if self.scales is not None and spec.scale not in self.scales:
            raise ConfigError(
                f"vectors of codec {spec.codec!r} know no scale {spec.scale!r}: known are "
                + ", ".join(self.scales)
            )
        self.spec = spec
        self.degree = degree
        self.highest = self._highest()
        start = torch.tensor(-float(spec.magnitude_bits - 2))
        self.log2_step = nn.Parameter(start) if self._has_step() else None
        self._samples = Samples()

    def codes(self, v: Tensor) -> tuple[Tensor, ...]:
        """Integer-valued codes, and the step. Shape: [..., 2ℓ+1, C] → depends on the codec."""
        raise NotImplementedError

    def dequantize(self, *codes: Tensor) -> Tensor:
        """v̂ from what ``codes`` returned. Shape: → [..., 2ℓ+1, C]."""
        raise NotImplementedError

    def forward(self, v: Tensor) -> Tensor:
        """v̂ with the derivative of v; override it for other derivatives."""
        return straight_through(v, self.dequantize(*self.codes(v.detach())))

    def in_context(self, v: Tensor, context: Context) -> Tensor:
        """``forward`` for a codec that looks at the atoms, too."""
        return self(v)

    def size(self, v: Tensor) -> Tensor:
        """The numbers that the step has to cover: by default ‖V_c‖. Shape: → [..., 1, C]."""
        return v.square().sum(-2, keepdim=True).sqrt()

    def step(self, v: Tensor) -> Tensor:
        """Learned, or the largest ``size`` among the atom's channels over the largest code.

        Invariant under rotations, hence the same in all frames. Shape: → [] or [..., 1, 1].
        """
        if self.log2_step is not None:
            return torch.exp2(self.log2_step)
        largest = self.size(v.detach()).amax((-2, -1), keepdim=True)
        return largest.clamp_min(_SMALLEST) / self.highest

    def fit(self, v: Tensor) -> None:
        """One calibration batch."""
        if self.log2_step is not None:
            self._samples.add(self.size(v.detach()))

    def finish(self) -> None:
        """End of calibration: the step at which the sampled sizes lose least."""
        if self.log2_step is not None:
            fitted = self._samples.best_log2_step(-self.highest, self.highest)
            if fitted is not None:
                self.log2_step.data.fill_(fitted)

    def _highest(self) -> int:
        return 2**self.spec.magnitude_bits - 1

    def _has_step(self) -> bool:
        return self.spec.scale == "static"

    def extra_repr(self) -> str:
        return f"degree={self.degree}, {self.spec!r}"


class IdentityCodec(VectorCodec, name="identity"):
    """Float vectors: only the weights are rounded."""

    def codes(self, v: Tensor) -> tuple[Tensor, ...]:
        return (v,)

    def dequantize(self, *codes: Tensor) -> Tensor:
        return codes[0]

    def forward(self, v: Tensor) -> Tensor:
        return v

    def _has_step(self) -> bool:
        return False


class CartesianCodec(VectorCodec, name="cartesian"):
    """Each component uniformly, v̂_m = Δ round(v_m/Δ), signed codes.

    One step serves all channels of an atom, so codes enter an integer product over channels as they
    are. The dynamic step covers the largest component.
    """

    def codes(self, v: Tensor) -> tuple[Tensor, ...]:
        step = self.step(v).detach()
        ratio = v / step
        if self.log2_step is not None:
            ratio = torch.clamp(ratio, -self.highest, self.highest)
        return torch.round(ratio), step

    def dequantize(self, *codes: Tensor) -> Tensor:
        components, step = codes
        return step * components

    def forward(self, v: Tensor) -> Tensor:
        if self.log2_step is None:
            return super().forward(v)
        return learned_step_quantize(v, self.step(v), -self.highest, self.highest, v.shape[-1])

    def size(self, v: Tensor) -> Tensor:
        return v.abs()

    def _highest(self) -> int:
        return 2 ** (self.spec.magnitude_bits - 1) - 1


class ComponentCodec(VectorCodec, name="components"):
    """Each component as if it were a scalar, by the ``ScalarQuantizer`` that ``spec.scale`` names.

    What a quantiser does that knows no vectors. Most of these are not odd, so that even in local
    frames they are only equivariant where signs of axes are settled.

    Attributes:
        quantizer: of the components.
    """

    scales = None

    def __init__(self, spec: VectorSpec, degree: int) -> None:
        super().__init__(spec, degree)
        scalars = ScalarSpec(bits=spec.magnitude_bits, scale=spec.scale)
        self.quantizer = ScalarQuantizer.named(spec.scale)(scalars, 0)

    def codes(self, v: Tensor) -> tuple[Tensor, ...]:
        return self.quantizer.codes(v)

    def dequantize(self, *codes: Tensor) -> Tensor:
        return self.quantizer.dequantize(*codes)

    def forward(self, v: Tensor) -> Tensor:
        return self.quantizer.round(v)

    def in_context(self, v: Tensor, context: Context) -> Tensor:
        return self.quantizer(v, context)

    def fit(self, v: Tensor) -> None:
        if self.quantizer.observing == "ranges":
            self.quantizer.fit(v)

    def finish(self) -> None:
        """The quantiser is told by itself."""

    def _has_step(self) -> bool:
        return False


class MDDQCodec(VectorCodec, name="mddq"):
    """Magnitude and direction apart, v̂ = Q_r(r) Q_d(u)/‖Q_d(u)‖ [P1 Eq. 1].

    Q_r is uniform and unsigned; Q_d rounds each component of u = v/r, and the division that makes
    the direction a unit vector again is differentiated. For ℓ ≥ 2 u is the unit (2ℓ+1)-vector.

    r = √(‖v‖² + (Δ/4)²) in place of ‖v‖ keeps first and second derivatives finite at v = 0, where
    the code is 0 all the same; it shifts the first rounding threshold from 0.5 Δ to 0.43 Δ and
    later ones by less than 0.03 Δ.
    """

    def codes(self, v: Tensor) -> tuple[Tensor, ...]:
        step = self.step(v).detach()
        magnitude, unit = self.split(v, step)
        code = torch.round(magnitude / step).clamp(max=self.highest)
        return code, torch.round(unit * self.direction_scale(unit)), step

    def dequantize(self, *codes: Tensor) -> Tensor:
        magnitude, direction, step = codes
        return step * magnitude * _normalised(direction)

    def forward(self, v: Tensor) -> Tensor:
        step = self.step(v)
        magnitude, unit = self.split(v, step.detach())
        return self.rounded_magnitude(magnitude, step) * self.rounded_direction(unit)

    def split(self, v: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """r and v/r. Shape: → [..., 1, C], [..., 2ℓ+1, C]."""
        magnitude = (v.square().sum(-2, keepdim=True) + (0.25 * step).square()).sqrt()
        return magnitude, v / magnitude

    def rounded_magnitude(self, magnitude: Tensor, step: Tensor) -> Tensor:
        """Q_r(r); with a dynamic scale nothing is clipped. Shape: unchanged."""
        if self.log2_step is None:
            return step * round_through(magnitude / step)
        return learned_step_quantize(magnitude, step, 0, self.highest, magnitude.shape[-1])

    def rounded_direction(self, unit: Tensor) -> Tensor:
        """Q_d(u)/‖Q_d(u)‖. Shape: unchanged."""
        return _normalised(round_through(unit * self.direction_scale(unit)))

    def direction_scale(self, unit: Tensor) -> Tensor | int:
        """What u is multiplied with before it is rounded. Shape: [..., 2ℓ+1, C] → [] or [..., 1, C]."""
        return self.direction_highest

    @property
    def direction_highest(self) -> int:
        return 2 ** (self.spec.direction_bits - 1) - 1


class MDDQCubeCodec(MDDQCodec, name="mddq-cube"):
    """As ``mddq``, with directions rounded on a cube: the largest component always takes the largest
    code, Q_d(u) = round(H u/max|u_m|).

    Eq. 1 of [P1] divides by ‖Q_d(u)‖ anyway, so the length of what is rounded is free, and the sphere
    leaves codes unused: this one has 0.78 (ℓ = 1) and 0.71 (ℓ = 2) of its error at the same bits.
    """

    smallest_side = 1e-3  # u is shorter only where v is so small that its magnitude's code is 0

    def direction_scale(self, unit: Tensor) -> Tensor:
        side = unit.detach().abs().amax(-2, keepdim=True)
        return self.direction_highest / side.clamp_min(self.smallest_side)


class MDDQCodebookCodec(MDDQCodec, name="mddq-codebook"):
    """Magnitude as in ``mddq``, direction the nearest codeword on the sphere [P2].

    Geometric straight-through estimator: the derivative with respect to u is the projection
    I − uuᵀ on the tangent plane, so ⟨u, ∂L/∂u⟩ = 0 ([P2] Prop. 3.1).

    A component below 1e-5 of the atom's largest magnitude is taken for zero and keeps that value;
    the nearest codeword is then sought among those with the same zeros. Without it, float noise
    would choose between two mirror images on a plane of symmetry.

    Codebooks live on S²; directions of ℓ ≥ 2 are rounded component by component as in ``mddq``.
    """

    zero_tolerance = 1e-5
    codebook: Codebook | None

    def __init__(self, spec: VectorSpec, degree: int) -> None:
        super().__init__(spec, degree)
        self.codebook = Codebook.from_bits(spec.direction_bits) if degree == 1 else None

    def codes(self, v: Tensor) -> tuple[Tensor, ...]:
        if self.codebook is None:
            return super().codes(v)
        step = self.step(v).detach()
        magnitude, _ = self.split(v, step)
        code = torch.round(magnitude / step).clamp(max=self.highest)
        return code, self.codebook(self._sharpened(v, step)), step

    def dequantize(self, *codes: Tensor) -> Tensor:
        if self.codebook is None:
            return super().dequantize(*codes)
        magnitude, index, step = codes
        directions = self.codebook.points.to(magnitude.dtype)[index].transpose(-1, -2)
        return step * magnitude * directions

    def forward(self, v: Tensor) -> Tensor:
        if self.codebook is None:
            return super().forward(v)
        step = self.step(v)
        magnitude, unit = self.split(v, step.detach())
        codeword = self.codebook.nearest(self._sharpened(v.detach(), step.detach()))
        direction = tangential_straight_through(unit, codeword.transpose(-1, -2))
        return self.rounded_magnitude(magnitude, step) * direction

    def _sharpened(self, v: Tensor, step: Tensor) -> Tensor:
        """Components with noise set to zero, last. Shape: [..., 3, C] → [..., C, 3]."""
        small = v.abs() <= self.zero_tolerance * self.highest * step
        return torch.where(small, 0.0, v).transpose(-1, -2)


def tangential_straight_through(u: Tensor, codeword: Tensor) -> Tensor:
    """The value of ``codeword`` with derivative (I − ûûᵀ) with respect to u, û = u/‖u‖.

    The projector is a constant of the backward pass. Shape: [..., 2ℓ+1, C] twice → the same.
    """
    axis = u.detach()
    axis = axis / axis.square().sum(-2, keepdim=True).sqrt().clamp_min(_TINY)
    change = u - u.detach()
    return codeword + (change - axis * (axis * change).sum(-2, keepdim=True))


class VectorQuantizer(nn.Module):
    """A codec in a frame: Q(v) = v̂ (lab) or D Q₀(Dᵀ v) (local), D = D_ℓ(R_i).

    In local frames Dᵀv does not change when the atoms turn, so Q(D' v) = D' Q(v) exactly for every
    codec and bit width; see ``docs/quantization.md`` for symmetric environments.

    Attributes:
        codec: Q₀.
        frame: ``lab`` or ``local``.
        enabled: False passes inputs through untouched.
        observing: collect calibration samples; inputs then pass untouched.
    """

    def __init__(self, spec: VectorSpec, degree: int) -> None:
        super().__init__()
        self.codec = VectorCodec.named(spec.codec)(spec, degree)
        self.frame = spec.frame if spec.codec != "identity" else "lab"
        self.degree = degree
        self.enabled = True
        self.observing = False

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """Shape: [*atoms, 2ℓ+1, C] → the same."""
        if not (self.enabled or self.observing):
            return v
        if self.frame == "lab":
            return self._apply_codec(v, context)
        if context.rotations is None or self.degree not in context.rotations:
            raise ModelError(
                f"vectors of degree {self.degree} are rounded in local frames, but the context has "
                "none: build batches after quantize_, which sets network.uses_local_frames"
            )
        rotation = context.rotations[self.degree].detach()
        return rotation @ self._apply_codec(rotation.transpose(-1, -2) @ v, context)

    def _apply_codec(self, v: Tensor, context: Context) -> Tensor:
        if self.observing:
            self.codec.fit(v.detach())
            return v
        return self.codec.in_context(v, context)

    def finish(self) -> None:
        """End of calibration."""
        if self.observing:
            self.codec.finish()
        self.observing = False


def _normalised(v: Tensor) -> Tensor:
    """v/‖v‖ over components, 0 at 0, safe to differentiate. Shape: [..., 2ℓ+1, C]."""
    square = v.square().sum(-2, keepdim=True)
    return v * torch.rsqrt(torch.where(square > 0, square, 1.0))
