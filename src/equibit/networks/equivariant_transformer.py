"""The papers' equivariant transformer, for any ℓ_max, with the corrections that it needs."""

from __future__ import annotations

import re
from dataclasses import replace
from math import pi
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from equibit.networks.attention import START_TEMPERATURE, AttentionKind, NeighbourAttention
from equibit.networks.base import AtomisticNetwork, NetworkConfig
from equibit.networks.context import Context
from equibit.networks.geometry import Geometry
from equibit.networks.graph import Graph
from equibit.networks.harmonics import clebsch_gordan
from equibit.networks.linear import EquivariantLinear, Linear
from equibit.networks.radial import RadialFilter, SplineBasis

Temperature = Literal["learned", "fixed", "printed"]
Features = dict[int, Tensor]  # degree ℓ ≥ 1 → [*atoms, 2ℓ+1, channels]


def parse_irreps(irreps: str) -> dict[int, int]:
    """Channels by degree from e3nn notation with natural parity, e.g. ``64x0e+64x1o+32x2e``.

    Raises:
        ValueError: a term that cannot be read, a missing ℓ = 0, a gap or an unnatural parity.
    """
    channels: dict[int, int] = {}
    for term in irreps.replace(" ", "").split("+"):
        match = re.fullmatch(r"(\d+)x(\d+)([eo])", term)
        if match is None:
            raise ValueError(f"cannot read {term!r} in {irreps!r}; write e.g. 64x0e+64x1o")
        count, degree, parity = int(match[1]), int(match[2]), match[3]
        if parity != "eo"[degree % 2]:
            raise ValueError(f"{term!r}: only natural parity is supported (0e, 1o, 2e, 3o)")
        if degree in channels or count == 0:
            raise ValueError(f"{term!r}: name each degree once, with at least one channel")
        channels[degree] = count
    if sorted(channels) != list(range(len(channels))) or len(channels) > 4:
        raise ValueError(f"{irreps!r}: degrees must run 0, 1, … without gaps, up to 3")
    return dict(sorted(channels.items()))


class EquivariantTransformerConfig(NetworkConfig):
    """Hyper-parameters of ``EquivariantTransformer``.

    Attributes:
        irreps: features per atom, e.g. ``64x0e+64x1o``.
        layers: number of attention layers.
        heads: attention heads; must divide every multiplicity.
        radial_functions, splines: size of the radial basis and of its B-spline table.
        attention: ``linear`` or ``softmax`` weights; ``linear`` learns more from the same data.
        robust_attention: ℓ2-normalise queries and keys and scale their products by a temperature.
        temperature: ``learned`` per head; ``fixed`` where it starts; or 1/√F, which is [P1] Eq. 3 as
            ``printed`` and hardly attends. For comparison only; matters with robust attention.
        hidden: width of the hidden layer of the update network, as a multiple of the scalars.
        axial_messages: let the parts of the vectors along a bond reach every degree, at the price
            of a radial filter for each pair of degrees above 0.
    """

    architecture: Literal["equivariant_transformer"] = "equivariant_transformer"
    irreps: str = "64x0e+64x1o"
    layers: int = Field(default=6, ge=1, le=32)
    heads: int = Field(default=4, ge=1)
    radial_functions: int = Field(default=16, ge=2, le=64)
    splines: int = Field(default=32, ge=6, le=256)
    attention: AttentionKind = "linear"
    robust_attention: bool = True
    temperature: Temperature = "learned"
    hidden: int = Field(default=1, ge=1, le=8)
    axial_messages: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        channels = parse_irreps(self.irreps)
        if len({count for degree, count in channels.items() if degree > 0}) > 1:
            raise ValueError(f"{self.irreps!r}: degrees above 0 need the same number of channels")
        for degree, count in channels.items():
            if count % self.heads:
                raise ValueError(
                    f"{self.heads} heads do not divide the {count} channels of degree {degree}"
                )
        return self


class AttentionBlock(nn.Module):
    """Messages from neighbours to the scalars and vectors of each atom.

        p_ij^0 = s_j^0,  p_ij^ℓ = ⟨V_j^ℓ, Ŷ_ℓ(r̂_ij)⟩
        A_i^0 = Σ_j α_ij [φ^{0→0} p_ij^0, φ^{1→0} p_ij^1, …]
        A_i^ℓ = Σ_j α_ij ((φ^{0→ℓ} s_j^ℓ + Σ_{k ≥ 1} φ^{k→ℓ} p_ij^k) Ŷ_ℓ(r̂_ij) + φ^ℓ V_j^ℓ)
        x_i += W A_i^0,  V_i^ℓ += A_i^ℓ

    with s = W_v LN(x), radial filters φ(d_ij) per channel and Ŷ_ℓ = √(4π/(2ℓ+1)) Y_ℓ, so that
    Ŷ_1 = r̂. The parts p of the vectors along the bond let messages see angles, which the papers'
    variant lacks; that they reach other degrees (k ≥ 1) is the switch ``axial_messages``. The first
    block has no vectors to send.
    """

    def __init__(self, config: EquivariantTransformerConfig, first: bool) -> None:
        super().__init__()
        channels = parse_irreps(config.irreps)
        width = channels.pop(0)
        self.heads = config.heads
        self.degrees = list(channels)
        self.senders = [] if first else self.degrees
        self.value_widths = [width, *channels.values()]
        self.targets = self.degrees if config.axial_messages else []
        per_sender = 2 + len(self.targets)
        filters = [channels[degree] for degree in self.senders for _ in range(per_sender)]
        self.filter_widths = [*self.value_widths, *filters, config.heads]
        self.norm = nn.LayerNorm(width)
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, sum(self.value_widths))
        self.attention = NeighbourAttention(
            config.heads,
            config.attention,
            config.robust_attention,
            learned=config.temperature == "learned",
            start=width**-0.5 if config.temperature == "printed" else START_TEMPERATURE,
        )
        self.filter = RadialFilter(config.radial_functions, sum(self.filter_widths))
        self.output = Linear(width + sum(channels[degree] for degree in self.senders), width)

    def forward(
        self,
        x: Tensor,
        vectors: Features,
        basis: Tensor,
        geometry: Geometry,
        graph: Graph,
        context: Context,
    ) -> tuple[Tensor, Features]:
        h = self.norm(x)
        *filters, bias = self.filter(basis).split(self.filter_widths, -1)
        alpha = self.attention(
            self.query(h, context), self.key(h, context), bias, geometry.envelope, graph, context
        )
        weights = iter(
            (alpha.unsqueeze(-1) * filter_.unflatten(-1, (self.heads, -1))).flatten(-2)
            for filter_ in filters
        )
        scalars, *values = self.value(h, context).split(self.value_widths, -1)
        invariants = [next(weights) * graph.senders(scalars)]
        axial = {
            degree: next(weights) * graph.senders(value)
            for degree, value in zip(self.degrees, values, strict=True)
        }
        carried = {}
        for k in self.senders:
            vector = graph.senders(vectors[k])
            along = (vector * geometry.harmonics[k].unsqueeze(-1)).sum(-2)
            invariants.append(next(weights) * along)
            carried[k] = next(weights).unsqueeze(-2) * vector
            for degree in self.targets:
                axial[degree] = axial[degree] + next(weights) * along
        sums = {}
        for degree, message in axial.items():
            message = message.unsqueeze(-2) * geometry.harmonics[degree].unsqueeze(-1)
            if degree in carried:
                sums[degree] = vectors[degree] + graph.aggregate(message + carried[degree])
            else:
                sums[degree] = graph.aggregate(message)
        aggregated = torch.cat([graph.aggregate(invariant) for invariant in invariants], -1)
        return x + self.output(aggregated, context), sums


class ChannelProducts(nn.Module):
    """Products of two vectors of one atom, channel by channel, summed into each degree.

        P^ℓ = Σ_{ℓ1,ℓ2 ≥ 1} w_c (U^ℓ1 ⊗ T^ℓ2)^ℓ  over triples of even ℓ1 + ℓ2 + ℓ

    Together with the messages this reaches four-body terms per layer at the price of atoms, not of
    edges. With ℓ_max = 1 there is no such triple and nothing to do.

    Attributes:
        weight: w. Shape: [paths, channels].
    """

    def __init__(self, degrees: list[int], channels: int) -> None:
        super().__init__()
        self.paths = [
            (l1, l2, l3)
            for l1 in degrees
            for l2 in degrees
            for l3 in degrees
            if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
        ]
        self.weight = nn.Parameter(torch.full((len(self.paths), channels), 0.1))
        for path in self.paths:
            self.register_buffer(_coupling_name(path), clebsch_gordan(*path), persistent=False)

    def forward(self, u: Features, t: Features) -> Features:
        products: Features = {}
        for path, weight in zip(self.paths, self.weight, strict=True):
            l1, l2, l3 = path
            coupling = getattr(self, _coupling_name(path)).to(weight.dtype)
            pairs = (u[l1].unsqueeze(-2) * t[l2].unsqueeze(-3)).flatten(-3, -2)
            product = weight * (coupling.flatten(0, 1).T @ pairs)
            products[l3] = products[l3] + product if l3 in products else product
        return products


def _coupling_name(path: tuple[int, int, int]) -> str:
    return "coupling_{}_{}_{}".format(*path)


class UpdateBlock(nn.Module):
    """Mixes the channels of each atom: invariants of the vectors reach the scalars, gates return.

        [U_ℓ, T_ℓ] = W_ℓ V_ℓ,  s_ℓ = ⟨U_ℓ, T_ℓ⟩/√(2ℓ+1),
        [a, g_1, …] = MLP([LN(x), s_1, …]),  x += a,  V_ℓ += g_ℓ ⊙ (U_ℓ + P_ℓ)

    with the products P of ``ChannelProducts``. The last block only updates the scalars.
    """

    def __init__(self, config: EquivariantTransformerConfig, last: bool) -> None:
        super().__init__()
        channels = parse_irreps(config.irreps)
        width = channels.pop(0)
        self.last = last
        self.degrees = list(channels)
        self.widths = [width] if last else [width, *channels.values()]
        self.norm = nn.LayerNorm(width)
        self.mix = nn.ModuleDict(
            {str(degree): EquivariantLinear(degree, n, 2 * n) for degree, n in channels.items()}
        )
        if channels and not last:
            self.products = ChannelProducts(self.degrees, channels[1])
        self.hidden = Linear(width + sum(channels.values()), config.hidden * width)
        self.output = Linear(config.hidden * width, sum(self.widths))

    def forward(self, x: Tensor, vectors: Features, context: Context) -> tuple[Tensor, Features]:
        u, t, inputs = {}, {}, [self.norm(x)]
        for degree in self.degrees:
            mixed = self.mix[str(degree)](vectors[degree], context)
            u[degree], t[degree] = mixed.chunk(2, -1)
            inputs.append((u[degree] * t[degree]).sum(-2) * (2 * degree + 1) ** -0.5)
        hidden = nn.functional.silu(self.hidden(torch.cat(inputs, -1), context))
        dx, *gates = self.output(hidden, context).split(self.widths, -1)
        if gates:
            products = self.products(u, t)
            for degree, gate in zip(self.degrees, gates, strict=True):
                update = u[degree] + products[degree] if degree in products else u[degree]
                vectors = vectors | {degree: vectors[degree] + gate.unsqueeze(-2) * update}
        return x + dx, vectors


class EquivariantTransformer(AtomisticNetwork):
    """Scalar and vector channels that meet through attention and gated updates [P1 III.A].

    Corrections to the papers, with reasons in ``docs/networks.md``: a learned temperature instead of
    cosines over √d, the cutoff function inside the softmax, radial functions that are B-splines,
    and messages ⟨V_j, r̂_ij⟩ from vectors to scalars.
    """

    config: EquivariantTransformerConfig
    weight_only_layers: ClassVar[tuple[str, ...]] = ("*.filter", "head.*")
    message_layers: ClassVar[tuple[str, ...]] = ("attention.*.output",)

    def __init__(self, config: EquivariantTransformerConfig) -> None:
        super().__init__(config)
        channels = parse_irreps(config.irreps)
        width = channels[0]
        self.harmonic_degrees = tuple(degree for degree in channels if degree > 0)
        last = config.layers - 1
        self.readout_layers = (
            f"update.{last}.hidden",
            f"update.{last}.output",
            *(f"attention.{last}.{name}" for name in ("value", "key", "query")),
        )
        self.embedding = nn.Embedding(len(config.elements), width)
        self.basis = SplineBasis(config.cutoff, config.radial_functions, config.splines)
        self.attention = nn.ModuleList(
            AttentionBlock(config, first=layer == 0) for layer in range(config.layers)
        )
        self.update = nn.ModuleList(
            UpdateBlock(config, last=layer == config.layers - 1) for layer in range(config.layers)
        )
        hidden, output = Linear(width, width), Linear(width, 1)
        # Start near the per-element reference; random contributions would have to be unlearned.
        nn.init.zeros_(output.bias)
        nn.init.normal_(output.weight, std=0.1 * width**-0.5)
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(width), "hidden": hidden, "output": output})

    def blocks(self) -> list[str]:
        return [
            f"{kind}.{k}" for k in range(self.config.layers) for kind in ("attention", "update")
        ]

    def normalised_inputs(self) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
        groups: list[tuple[str, tuple[tuple[str, int], ...]]] = []
        for k in range(self.config.layers):
            readers = tuple((f"attention.{k}.{name}", 0) for name in ("query", "key", "value"))
            groups.append((f"attention.{k}.norm", readers))
            groups.append((f"update.{k}.norm", ((f"update.{k}.hidden", 0),)))
        return groups

    def forward(self, graph: Graph, geometry: Geometry, context: Context) -> Tensor:
        x = self.embedding(graph.species)
        vectors: Features = {}
        basis = self.basis(geometry.distances)
        geometry = replace(
            geometry,
            harmonics={
                degree: y * (4 * pi / (2 * degree + 1)) ** 0.5
                for degree, y in geometry.harmonics.items()
            },
        )
        for attend, update in zip(self.attention, self.update, strict=True):
            x, vectors = attend(x, vectors, basis, geometry, graph, context)
            x, vectors = update(x, vectors, context)
        hidden = nn.functional.silu(self.head["hidden"](self.head["norm"](x), context))
        return self.head["output"](hidden, context).squeeze(-1)
