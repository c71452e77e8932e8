"""Attention over neighbours that is smooth at the cutoff and robust to rounding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from equibit.networks.context import Context
from equibit.networks.graph import Graph

AttentionKind = Literal["softmax", "linear"]
START_TEMPERATURE = 2.0


class AttentionInput(nn.Module):
    """The identity; quantisation puts a rounding quantiser for queries or keys in its place."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return x


def normalise(x: Tensor) -> Tensor:
    """x/‖x‖ along the last axis, with finite derivatives at zero [P1 III.D]. Shape: unchanged."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class NeighbourAttention(nn.Module):
    """Attention weights α_ij per head from queries, keys and a radial bias.

    Logits are z_ij = τ_h q̃_i·k̃_j + b_h(d_ij) with ℓ2-normalised q̃, k̃ and a learned temperature
    τ_h per head (robust; [P2], correcting [P1] Eq. 3 whose cosines over √d hardly attend), or
    z_ij = q_i·k_j/√d + b_h(d_ij). The cutoff function enters numerator and denominator, so that a
    neighbour leaves without a jump:

        softmax: α_ij = f_c e^{z_ij} / (1 + Σ_j f_c e^{z_ij})
        linear:  α_ij = f_c z_ij
    """

    def __init__(
        self,
        n_heads: int,
        kind: AttentionKind,
        robust: bool,
        *,
        learned: bool = True,
        start: float = START_TEMPERATURE,
    ) -> None:
        """``start`` is the temperature of all heads, before it is learned or, if not, for good."""
        super().__init__()
        self.n_heads = n_heads
        self.kind = kind
        self.robust = robust
        self.query_input = AttentionInput()
        self.key_input = AttentionInput()
        if robust:
            temperature = torch.full((n_heads,), start)
            if learned:
                self.temperature = nn.Parameter(temperature)
            else:
                self.register_buffer("temperature", temperature)

    def forward(
        self, q: Tensor, k: Tensor, bias: Tensor, envelope: Tensor, graph: Graph, context: Context
    ) -> Tensor:
        """Shape: q, k [*atoms, F]; bias [*edges, heads]; envelope [*edges] → [*edges, heads]."""
        q, k = q.unflatten(-1, (self.n_heads, -1)), k.unflatten(-1, (self.n_heads, -1))
        if self.robust:
            q, k = normalise(q), normalise(k)
        q, k = self.query_input(q, context), self.key_input(k, context)
        scale = self.temperature.unsqueeze(-1) if self.robust else q.shape[-1] ** -0.5
        q = q * scale
        logits = (graph.receivers(q) * graph.senders(k)).sum(-1) + bias
        if self.kind == "linear":
            return envelope.unsqueeze(-1) * logits
        weights = envelope.unsqueeze(-1) * torch.exp(logits)
        return weights / graph.receivers(1 + graph.aggregate(weights))
