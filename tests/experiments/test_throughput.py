from __future__ import annotations

import torch
from tests.experiments.small import NETWORK, small_structures

from equibit.experiments.throughput import time_interleaved, training_step
from equibit.networks.equivariant_transformer import EquivariantTransformerConfig
from equibit.networks.registry import build_network
from equibit.training.batches import Collator


def test_a_step_differentiates_forces_and_leaves_the_network_as_it_was() -> None:
    network = build_network(EquivariantTransformerConfig.model_validate(NETWORK))
    before = [p.detach().clone() for p in network.parameters()]
    batch = Collator(small_structures(4), network)(range(4))
    step = training_step(network, batch)
    step()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert any(g.abs().max() > 0 for g in gradients)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_kinds_are_timed_in_turns() -> None:
    order: list[str] = []
    timings = time_interleaved(
        {name: lambda name=name: order.append(name) for name in "ab"}, batch_size=10, repeats=3
    )
    assert order == ["a", "b"] * 4
    assert timings["a"].repeats == 3
    assert timings["a"].structures_per_second == 10 / timings["a"].median
