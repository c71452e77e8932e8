"""Every matrix product of every network, so that quantisation finds them all by type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equibit.networks.context import Context


class Linear(nn.Linear):
    """y = W x + b on invariant channels. Shape: [*atoms or *edges, in] → [..., out]."""

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class BlockLinear(nn.Module):
    """y_h = W_h x_h within each head (So3krates' q, k and v). Shape: [..., heads·in] → [..., heads·out].

    Attributes:
        weight: Shape: [heads, out, in].
    """

    def __init__(self, n_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads, out_features, in_features))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        heads = x.unflatten(-1, (self.weight.shape[0], self.weight.shape[2]))
        return torch.einsum("hoi,...hi->...ho", self.weight, heads).flatten(-2)


class EquivariantLinear(nn.Module):
    """V'_mo = Σ_c W_oc V_mc: mixes the channels of one degree ℓ and leaves components alone.

    No bias, which would break equivariance. Shape: [*atoms, 2ℓ+1, in] → [*atoms, 2ℓ+1, out].

    Attributes:
        degree: ℓ.
        weight: Shape: [out, in].
    """

    def __init__(self, degree: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.degree = degree
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.normal_(self.weight, std=in_channels**-0.5)

    def forward(self, v: Tensor, context: Context) -> Tensor:
        return nn.functional.linear(v, self.weight)
