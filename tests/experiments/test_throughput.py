from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.experiments.small import NETWORK, small_structures

from equibit.experiments import throughput
from equibit.experiments.throughput import (
    eager_step_seconds,
    sized_sample,
    time_interleaved,
    training_step,
)
from equibit.networks.equivariant_transformer import EquivariantTransformerConfig
from equibit.networks.registry import build_network
from equibit.structures import Structure
from equibit.training.batches import Collator
from equibit.training.config import validate_config


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


def test_a_sample_is_spread_over_the_sizes() -> None:
    structures = [Structure([1] * n, 2.0 * np.eye(3)[:n]) for n in (3, 1, 2) for _ in range(10)]
    sizes = [len(s) for s in sized_sample(structures, 6)]
    assert sizes == [1, 1, 2, 2, 3, 3]
    assert len(sized_sample(structures, 99)) == 30


def test_a_step_of_an_epoch_is_timed_over_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches that are timed stand for equal shares of the sizes; energies suffice."""
    seen: list[int] = []
    original = throughput.training_step

    def counted(network, batch, *arguments, **options):  # type: ignore[no-untyped-def]
        seen.append(int(batch.n_atoms.sum()))
        return original(network, batch, *arguments, **options)

    monkeypatch.setattr(throughput, "training_step", counted)
    water, lone = small_structures(20), []
    for structure in small_structures(20):
        lone.append(Structure(structure.numbers[1:], structure.positions[1:], energy=0.0))
    config = validate_config(
        {
            "data": {"dataset": "toy"},
            "network": NETWORK,
            "loss": {"energy": 1.0, "forces": 0.0},
            "optimization": {"batch_size": 5},
        },
        source="test",
    )
    structures = [replace(s, forces=None) for s in [*water, *lone]]
    assert eager_step_seconds(config, structures, None) > 0
    assert set(seen) == {10, 15}
    assert seen.count(10) == seen.count(15)
