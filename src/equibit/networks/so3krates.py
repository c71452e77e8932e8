"""So3krates (Frank et al. 2022, arXiv:2205.14276; 2024, arXiv:2309.15126), exactly as published.

Two branches meet once per layer: invariant features x_i (F numbers) and Euclidean variables χ_i
with one channel per degree (Σ(2ℓ+1) numbers). Every learned product acts on invariants, so a
network whose products are quantised keeps its exact equivariance.
"""

from __future__ import annotations

from math import exp, sqrt
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from equibit.networks.attention import AttentionInput, normalise
from equibit.networks.base import AtomisticNetwork, NetworkConfig
from equibit.networks.context import Context
from equibit.networks.geometry import Geometry
from equibit.networks.graph import Graph
from equibit.networks.harmonics import MAX_DEGREE
from equibit.networks.linear import BlockLinear, Linear


class So3kratesConfig(NetworkConfig):
    """Hyper-parameters of ``So3krates``; the defaults are the published ones.

    Attributes:
        features: F, divisible by ``heads`` and by the number of degrees.
        layers: message-passing layers.
        heads: heads of the invariant branch; the equivariant branch has one per degree.
        degrees: degrees ℓ ≥ 1 of the Euclidean variables, ascending.
        radial_basis: K, number of basis functions.
        robust_attention: ℓ2-normalise queries and keys and learn a temperature per head.
    """

    architecture: Literal["so3krates"] = "so3krates"
    features: int = Field(default=132, ge=4)
    layers: int = Field(default=3, ge=1, le=32)
    heads: int = Field(default=4, ge=1)
    degrees: tuple[Annotated[int, Field(ge=1, le=MAX_DEGREE)], ...] = Field(
        default=(1, 2, 3), min_length=1
    )
    radial_basis: int = Field(default=32, ge=2, le=256)
    robust_attention: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.degrees) != sorted(set(self.degrees)):
            raise ValueError(f"degrees must ascend without repeats, got {self.degrees}")
        for name, parts in (("heads", self.heads), ("degrees", len(self.degrees))):
            if self.features % parts:
                raise ValueError(f"{parts} {name} do not divide the {self.features} features")
        return self


def exponential_gaussians(distances: Tensor, n_basis: int, cutoff: float) -> Tensor:
    """g_k(d) = exp(−β (e^{−d} − μ_k)²), μ = linspace(e^{−r_c}, 1, K), β = [(2/K)(1 − e^{−r_c})]^{−2}.

    PhysNet's basis as So3krates uses it (Frank et al. 2022, SI). Shape: [*edges] → [*edges, K].
    """
    centres = torch.linspace(
        exp(-cutoff), 1.0, n_basis, dtype=torch.float64, device=distances.device
    ).to(distances.dtype)
    width = (2.0 / n_basis * (1.0 - exp(-cutoff))) ** -2
    return torch.exp(-width * (torch.exp(-distances).unsqueeze(-1) - centres) ** 2)


def degree_norms(degrees: tuple[int, ...], chi: Tensor) -> Tensor:
    """c_ℓ(χ) = Σ_m χ_ℓm² / √(2ℓ+1), the invariants of χ. Shape: [..., Σ(2ℓ+1)] → [..., |D|]."""
    squares = (chi * chi).split([2 * degree + 1 for degree in degrees], -1)
    return torch.stack(
        [
            part.sum(-1) / sqrt(2 * degree + 1)
            for degree, part in zip(degrees, squares, strict=True)
        ],
        -1,
    )


def repeat_over_components(degrees: tuple[int, ...], per_degree: Tensor) -> Tensor:
    """One number per degree, repeated for its 2ℓ+1 components. Shape: [..., |D|] → [..., Σ(2ℓ+1)]."""
    return torch.cat(
        [
            per_degree[..., k : k + 1].expand(*per_degree.shape[:-1], 2 * degree + 1)
            for k, degree in enumerate(degrees)
        ],
        -1,
    )


class Perceptron(nn.Module):
    """y = W₂ SiLU(W₁ x + b₁) + b₂. Shape: [..., in] → [..., out]."""

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.first = _lecun(Linear(in_features, hidden))
        self.second = _lecun(Linear(hidden, out_features))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.second(silu(self.first(x, context)), context)


class PairFilter(nn.Module):
    """w_ij = MLP_r(g(d_ij)) + MLP_s(c(χ_j − χ_i)). Shape: [*edges, K], [*edges, |D|] → [*edges, F]."""

    def __init__(self, config: So3kratesConfig) -> None:
        super().__init__()
        features, n_degrees = config.features, len(config.degrees)
        self.radial = Perceptron(config.radial_basis, features, features)
        self.spherical = Perceptron(n_degrees, features // 4, features)

    def forward(self, basis: Tensor, difference_norms: Tensor, context: Context) -> Tensor:
        return self.radial(basis, context) + self.spherical(difference_norms, context)


class PairAttention(nn.Module):
    """α_ij = f_c(d_ij) Σ_f (W_q x_i)_f w_ijf (W_k x_j)_f / √(F/H) within each head, no softmax.

    Robust form: q and k are divided by their ℓ2 norm within the head, and a learned τ, which starts
    at √(F/H) so that α starts at the plain form's size, takes the place of 1/√(F/H).

    Shape: x [*atoms, F], filters [*edges, F], envelope [*edges] → [*edges, heads].
    """

    def __init__(self, n_heads: int, features: int, robust: bool) -> None:
        super().__init__()
        width = features // n_heads
        self.n_heads = n_heads
        self.robust = robust
        self.query = BlockLinear(n_heads, width, width)
        self.key = BlockLinear(n_heads, width, width)
        self.query_input = AttentionInput()
        self.key_input = AttentionInput()
        if robust:
            self.temperature = nn.Parameter(torch.full((n_heads,), sqrt(width)))

    def forward(
        self, x: Tensor, filters: Tensor, envelope: Tensor, graph: Graph, context: Context
    ) -> Tensor:
        q = self.query(x, context).unflatten(-1, (self.n_heads, -1))
        k = self.key(x, context).unflatten(-1, (self.n_heads, -1))
        if self.robust:
            q, k = normalise(q), normalise(k)
        q, k = self.query_input(q, context), self.key_input(k, context)
        q = q * (self.temperature.unsqueeze(-1) if self.robust else q.shape[-1] ** -0.5)
        filters = filters.unflatten(-1, (self.n_heads, -1))
        products = (graph.receivers(q) * filters * graph.senders(k)).sum(-1)
        return envelope.unsqueeze(-1) * products


class So3kratesLayer(nn.Module):
    """Both branches read the same x and χ; the interaction then mixes their invariants.

        x_i  += concat_h Σ_j α^h_ij W_v x_j                 χ_iℓ += Σ_j α^ℓ_ij Y_ℓ(r̂_ij)
        [a; b] = W [x_i; c(χ_i)] + bias                     x_i += a,  χ_iℓ += b_ℓ χ_iℓ

    Shape: x [*atoms, F], χ [*atoms, Σ(2ℓ+1)] → the same.
    """

    def __init__(self, config: So3kratesConfig) -> None:
        super().__init__()
        features, heads, degrees = config.features, config.heads, config.degrees
        self.degrees = degrees
        self.invariant_filter = PairFilter(config)
        self.invariant_attention = PairAttention(heads, features, config.robust_attention)
        self.value = BlockLinear(heads, features // heads, features // heads)
        self.equivariant_filter = PairFilter(config)
        self.equivariant_attention = PairAttention(len(degrees), features, config.robust_attention)
        joint = features + len(degrees)
        self.interaction = _lecun(Linear(joint, joint))

    def forward(
        self,
        x: Tensor,
        chi: Tensor,
        basis: Tensor,
        envelope: Tensor,
        harmonics: Tensor,
        graph: Graph,
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        norms = degree_norms(self.degrees, graph.senders(chi) - graph.receivers(chi))

        filters = self.invariant_filter(basis, norms, context)
        alpha = self.invariant_attention(x, filters, envelope, graph, context)
        values = self.value(x, context).unflatten(-1, (alpha.shape[-1], -1))
        update = graph.aggregate(alpha.unsqueeze(-1) * graph.senders(values)).flatten(-2)

        filters = self.equivariant_filter(basis, norms, context)
        alpha = self.equivariant_attention(x, filters, envelope, graph, context)
        chi = chi + graph.aggregate(repeat_over_components(self.degrees, alpha) * harmonics)
        x = x + update

        joint = torch.cat((x, degree_norms(self.degrees, chi)), -1)
        a, b = self.interaction(joint, context).split((x.shape[-1], len(self.degrees)), -1)
        return x + a, chi + repeat_over_components(self.degrees, b) * chi


class So3krates(AtomisticNetwork):
    """ε_i = MLP(x_i) after the last layer, from x_i = Embed[Z_i] and χ_i = 0.

    Energies of the published form are Σ_i s_Z ε_i + μ_Z with fixed s and μ.
    """

    config: So3kratesConfig
    envelope: ClassVar[str] = "cosine"
    weight_only_layers: ClassVar[tuple[str, ...]] = ("head.*", "*.radial.first")
    edge_layers: ClassVar[tuple[str, ...]] = ("*_filter.*",)

    def __init__(self, config: So3kratesConfig) -> None:
        super().__init__(config)
        self.harmonic_degrees = config.degrees
        self.embedding = nn.Embedding(len(config.elements), config.features)
        nn.init.normal_(self.embedding.weight, std=config.features**-0.5)
        self.layers = nn.ModuleList(So3kratesLayer(config) for _ in range(config.layers))
        self.head = Perceptron(config.features, config.features, 1)

    def forward(self, graph: Graph, geometry: Geometry, context: Context) -> Tensor:
        config = self.config
        basis = exponential_gaussians(geometry.distances, config.radial_basis, config.cutoff)
        harmonics = torch.cat([geometry.harmonics[degree] for degree in config.degrees], -1)
        x = self.embedding(graph.species)
        chi = x.new_zeros((*graph.species.shape, harmonics.shape[-1]))
        for layer in self.layers:
            x, chi = layer(x, chi, basis, geometry.envelope, harmonics, graph, context)
        return self.head(x, context).squeeze(-1)


def _lecun(layer: Linear) -> Linear:
    """flax's default start: normal of variance 1/fan_in cut at two widths, zero bias."""
    spread = layer.in_features**-0.5 / 0.8796  # the cut narrows a unit normal to this
    nn.init.trunc_normal_(layer.weight, std=spread, a=-2 * spread, b=2 * spread)
    nn.init.zeros_(layer.bias)
    return layer
