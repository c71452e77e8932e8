"""Attention over neighbours: weights as defined, smooth, bounded, differentiable twice."""

from __future__ import annotations

import pytest
import torch

from equibit.networks.attention import AttentionKind, NeighbourAttention, normalise
from equibit.networks.context import Context
from equibit.networks.equivariant_transformer import (
    EquivariantTransformer,
    EquivariantTransformerConfig,
)
from equibit.networks.graph import SparseGraph

HEADS, WIDTH = 2, 8
N_ATOMS = 4


def complete_graph() -> SparseGraph:
    pairs = [(i, j) for i in range(N_ATOMS) for j in range(N_ATOMS) if i != j]
    receivers, senders = torch.tensor(pairs).T
    return SparseGraph(
        species=torch.zeros(N_ATOMS, dtype=torch.int64),
        structure_index=torch.zeros(N_ATOMS, dtype=torch.int64),
        receiver_index=receivers,
        sender_index=senders,
        n_structures=1,
    )


def inputs(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    n_edges = N_ATOMS * (N_ATOMS - 1)
    q, k = (scale * torch.randn(N_ATOMS, WIDTH, generator=generator).double() for _ in range(2))
    bias = torch.randn(n_edges, HEADS, generator=generator).double()
    envelope = torch.rand(n_edges, generator=generator).double()
    return q, k, bias, envelope


def attend(kind: AttentionKind, robust: bool, *arguments: torch.Tensor) -> torch.Tensor:
    graph = complete_graph()
    module = NeighbourAttention(HEADS, kind, robust).double()
    if robust:
        module.temperature.data = torch.tensor([0.5, 3.0], dtype=torch.float64)
    return module(*arguments, graph, Context(graph.species))


@pytest.mark.parametrize("kind", ["softmax", "linear"])
@pytest.mark.parametrize("robust", [True, False])
def test_weights_are_those_of_the_definition(kind: AttentionKind, robust: bool) -> None:
    q, k, bias, envelope = inputs()
    got = attend(kind, robust, q, k, bias, envelope)
    graph = complete_graph()
    temperature = [0.5, 3.0]
    logits, weights = {}, {}
    for edge, (i, j) in enumerate(zip(graph.receiver_index, graph.sender_index, strict=True)):
        for h in range(HEADS):
            part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            a, b = q[i, part], k[j, part]
            if robust:
                a, b = a / (a @ a + 1e-6).sqrt(), b / (b @ b + 1e-6).sqrt()
                dot = temperature[h] * (a @ b)
            else:
                dot = (a @ b) / (WIDTH / HEADS) ** 0.5
            logits[edge, h] = dot + bias[edge, h]
            weights[edge, h] = envelope[edge] * torch.exp(logits[edge, h])
    for edge, i in enumerate(graph.receiver_index):
        neighbours = [e for e, other in enumerate(graph.receiver_index) if other == i]
        for h in range(HEADS):
            if kind == "softmax":
                expected = weights[edge, h] / (1 + sum(weights[e, h] for e in neighbours))
            else:
                expected = envelope[edge] * logits[edge, h]
            assert got[edge, h].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "linear"])
def test_neighbours_at_the_cutoff_have_no_weight_and_change_none(kind: AttentionKind) -> None:
    q, k, bias, envelope = inputs()
    envelope[0] = 0.0
    got = attend(kind, True, q, k, bias, envelope)
    assert (got[0] == 0).all()
    bias[0] += 5.0
    assert torch.equal(attend(kind, True, q, k, bias, envelope), got)


def test_lonely_atoms_attend_to_nothing() -> None:
    q, k, bias, _ = inputs()
    got = attend("softmax", True, q, k, bias, torch.zeros(bias.shape[0], dtype=torch.float64))
    assert (got == 0).all()


def test_robust_logits_do_not_grow_with_queries_and_keys() -> None:
    """Their size is bounded by the temperature, so large activations cannot overflow."""
    small = attend("softmax", True, *inputs(scale=1.0))
    large = attend("softmax", True, *inputs(scale=1e4))
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-7)
    assert not torch.isfinite(attend("softmax", False, *inputs(scale=1e4))).all()


@pytest.mark.parametrize("robust", [True, False])
def test_second_derivatives_are_finite_at_zero_queries(robust: bool) -> None:
    """Force losses differentiate twice, and species embeddings may vanish."""
    q, k, bias, envelope = inputs(scale=0.0)
    q.requires_grad_(True)
    value = attend("softmax", robust, q, k, bias, envelope).square().sum()
    (slope,) = torch.autograd.grad(value, q, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), q, allow_unused=True)
    assert torch.isfinite(slope).all()
    assert curvature is None or torch.isfinite(curvature).all()


def test_normalised_rows_have_length_one() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        normalise(x).norm(dim=-1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert (normalise(torch.zeros(3)) == 0).all()


def test_temperatures_are_learned_fixed_or_as_printed() -> None:
    config = {"elements": (1, 6, 8), "irreps": "16x0e+8x1o", "layers": 1}
    values = {}
    for temperature in ("learned", "fixed", "printed"):
        network = EquivariantTransformer(
            EquivariantTransformerConfig.model_validate({**config, "temperature": temperature})
        )
        attention = network.attention[0].attention
        learned = [name for name, _ in attention.named_parameters()]
        assert learned == (["temperature"] if temperature == "learned" else [])
        assert "temperature" in attention.state_dict()
        values[temperature] = attention.temperature[0].item()
    assert values == {"learned": 2.0, "fixed": 2.0, "printed": 0.25}
