"""Atoms that stay float in training: more likely the more neighbours they have."""

from __future__ import annotations

import pytest
import torch
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network

from equibit.networks.base import AtomisticNetwork
from equibit.networks.geometry import Geometry, edge_geometry
from equibit.networks.graph import Graph
from equibit.networks.potential import atomic_energies, build_graph, orient
from equibit.quantization.convert import quantize_
from equibit.quantization.protection import DegreeProtection
from equibit.quantization.recipes import Protection, Recipe
from equibit.structures import Structure

# A chain of four with neighbours within 1.5: degrees 1, 2, 2, 1; a pair: degrees 1, 1.
CHAIN = Structure([1, 6, 6, 1], [[float(k), 0, 0] for k in range(4)])
PAIR = Structure([1, 1], [[0.0, 0, 0], [1.0, 0, 0]])


def geometry(structures: list[Structure], cutoff: float = 1.5) -> tuple[Graph, Geometry]:
    graph, edges = build_graph(structures, ELEMENTS, cutoff)
    return graph, edge_geometry(edges, cutoff, (1,), "polynomial", torch.float32)


def test_probabilities_by_hand() -> None:
    graph, found = geometry([CHAIN, PAIR])
    p = DegreeProtection(Protection(least=0.1, most=0.2)).probabilities(graph, found)
    expected = torch.tensor([[0.15, 0.2, 0.2, 0.15], [0.2, 0.2, 0.2, 0.2]])
    torch.testing.assert_close(p[0], expected[0])
    torch.testing.assert_close(p[1, :2], expected[1, :2])


def test_sparse_graphs_have_the_same_probabilities() -> None:
    crystal = Structure(
        [1, 6, 6, 1], [[float(k), 0, 0] for k in range(4)], cell=20 * torch.eye(3).numpy(),
        pbc=[True] * 3,
    )  # fmt: skip
    p = DegreeProtection(Protection(least=0.1, most=0.2)).probabilities(*geometry([crystal]))
    torch.testing.assert_close(p, torch.tensor([0.15, 0.2, 0.2, 0.15]))


def test_on_a_complete_graph_all_are_equal() -> None:
    graph, found = geometry([CHAIN], cutoff=9.0)
    p = DegreeProtection(Protection()).probabilities(graph, found)
    torch.testing.assert_close(p, torch.full((1, 4), 0.1))


def test_masks_are_fresh_and_as_frequent_as_promised() -> None:
    torch.manual_seed(0)
    graph, found = geometry([CHAIN, PAIR])
    draw = DegreeProtection(Protection(least=0.0, most=0.4))
    masks = torch.stack([draw(graph, found) for _ in range(2000)]).float()
    torch.testing.assert_close(
        masks.mean(0)[0], torch.tensor([0.2, 0.4, 0.4, 0.2]), atol=0.04, rtol=0
    )
    assert not masks[:, 1, 2:].any()


@pytest.mark.parametrize("training", [True, False])
def test_only_training_protects(training: bool) -> None:
    """With every atom protected, a training network rounds weights alone."""

    def energies(recipe: Recipe) -> torch.Tensor:
        network: AtomisticNetwork = tiny_network()
        quantize_(network, recipe).train(training)
        graph, edges = build_graph([CHAIN], ELEMENTS, network.config.cutoff)
        batch = orient(network, graph, edges)
        with torch.no_grad():
            return atomic_energies(network, batch, batch.edge_vectors)

    protected = energies(Recipe(protection=Protection(least=1.0, most=1.0)))
    plain = energies(Recipe())
    weights_only = energies(
        Recipe(scalars=None, vectors={"codec": "identity"}, attention_bits=None)  # type: ignore[arg-type]
    )
    assert not torch.equal(plain, weights_only)
    if training:
        # Vectors of the codec mddq know no atoms and are rounded all the same.
        assert not torch.equal(protected, plain)
    else:
        assert torch.equal(protected, plain)
