"""Outliers move into weights, and the network stays what it was."""

from __future__ import annotations

import pytest
import torch
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network
from tests.networks.test_so3krates import tiny_network as tiny_so3krates

from equibit.evaluation.validation import probe_molecules
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import Batch, atomic_energies, build_graph, orient
from equibit.quantization.smoothing import smooth_, smoothing_scale
from equibit.structures.errors import ModelError

MOLECULES = [probe_molecules(ELEMENTS)[n] for n in ("random molecule", "tetrahedron")]


def run(network: AtomisticNetwork, batch: Batch) -> torch.Tensor:
    return atomic_energies(network, batch, batch.edge_vectors)


def batch(network: AtomisticNetwork) -> Batch:
    return orient(network, *build_graph(MOLECULES, ELEMENTS, network.config.cutoff))


def test_scales_by_hand() -> None:
    scale = smoothing_scale(
        torch.tensor([4.0, 0.0, 1.0]),
        [torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.5, 8.0, 0.0]])],
        0.5,
    )
    torch.testing.assert_close(
        scale, torch.tensor([2.0, (1e-5 / 8) ** 0.5, (1 / 1e-5) ** 0.5]), rtol=1e-5, atol=0
    )


def test_the_network_is_the_same_and_its_outliers_smaller() -> None:
    network = tiny_network().double()
    with torch.no_grad():  # one channel that outshines the others
        network.attention[0].norm.weight[3] *= 50
        network.attention[0].norm.bias.normal_()
    inputs = batch(network)
    before = run(network, inputs)
    outputs: list[torch.Tensor] = []
    norm = network.attention[0].norm
    handle = norm.register_forward_hook(lambda m, i, o: outputs.append(o.detach().abs()))
    run(network, inputs)
    smooth_(network, [inputs], run, 0.5)
    after = run(network, inputs)
    handle.remove()
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    spread = [
        o.flatten(0, -2).amax(0).max() / o.flatten(0, -2).amax(0).median() for o in outputs[::2]
    ]
    assert spread[1] < 0.5 * spread[0]


def test_what_cannot_be_smoothed_is_named() -> None:
    network = tiny_network()
    with pytest.raises(ModelError, match="at least one batch"):
        smooth_(network, [], run)
    other = tiny_so3krates()
    with pytest.raises(ModelError, match="So3krates has no normalisation"):
        smooth_(other, [None], run)
