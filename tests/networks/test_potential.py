"""From structures to batches and from networks to energies, forces and stresses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network

from equibit.evaluation.validation import probe_crystals, probe_molecules
from equibit.networks.graph import DenseGraph, SparseGraph
from equibit.networks.potential import (
    DENSE_LIMIT,
    TorchPotential,
    build_graph,
    energies_and_edge_gradients,
    lab_gradients,
    orient,
    species_index,
)
from equibit.structures import ModelError, Structure, StructureError

MOLECULES = probe_molecules(ELEMENTS)
CRYSTALS = probe_crystals(ELEMENTS)
SMALL = [s for s in MOLECULES.values() if len(s) <= 12]


@pytest.fixture(scope="module")
def potential() -> TorchPotential:
    return TorchPotential(tiny_network(irreps="8x0e+8x1o+8x2e").double())


def test_small_molecules_are_dense_and_others_sparse() -> None:
    assert isinstance(build_graph(SMALL, ELEMENTS, 4.0)[0], DenseGraph)
    large = MOLECULES["large molecule"]
    assert len(large) > DENSE_LIMIT
    for other in (large, CRYSTALS["triclinic crystal"]):
        assert isinstance(build_graph([SMALL[0], other], ELEMENTS, 4.0)[0], SparseGraph)


def test_dense_and_sparse_layouts_give_the_same_predictions(potential: TorchPotential) -> None:
    """The same molecules, with and without a large one that makes the batch sparse."""
    dense = potential.compute(SMALL)
    sparse = potential.compute([*SMALL, MOLECULES["large molecule"]])[:-1]
    for one, other in zip(dense, sparse, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
        np.testing.assert_allclose(one.atomic_energies, other.atomic_energies, atol=1e-10)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-10)


def test_batches_of_any_size_give_the_same_predictions() -> None:
    network = tiny_network().double()
    together = TorchPotential(network, batch_size=64).compute(SMALL)
    alone = TorchPotential(network, batch_size=1).compute(SMALL)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-12)


def test_canonical_orientation_changes_nothing_but_round_off(potential: TorchPotential) -> None:
    network = potential.network
    graph, edge_vectors = build_graph(SMALL, ELEMENTS, network.config.cutoff)
    batch = orient(network, graph, edge_vectors)
    assert batch.orientation is not None
    turned, gradients = energies_and_edge_gradients(network, batch)
    plain_batch = replace(batch, edge_vectors=edge_vectors, orientation=None)
    plain, plain_gradients = energies_and_edge_gradients(network, plain_batch)
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(lab_gradients(batch, gradients), plain_gradients, rtol=0, atol=1e-10)


def test_energies_are_scaled_and_shifted_by_element() -> None:
    network = tiny_network().double()
    structure = MOLECULES["random molecule"]
    network.set_scale_shift([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    raw = TorchPotential(network).compute([structure])[0]
    scale, shift = np.array([0.5, 2.0, 3.0]), np.array([-13.0, -1029.0, -2041.0])
    network.set_scale_shift(scale, shift)
    got = TorchPotential(network).compute([structure])[0]
    species = species_index(structure, ELEMENTS)
    expected = scale[species] * raw.atomic_energies + shift[species]
    np.testing.assert_allclose(got.atomic_energies, expected, rtol=1e-13)


def test_energy_reference_loses_no_digits_in_float32() -> None:
    """Totals of a million eV with differences of meV: float32 alone would be off by 0.06 eV."""
    network = tiny_network()
    structure = MOLECULES["random molecule"]
    network.set_scale_shift([1.0] * 3, [0.0] * 3)
    raw = TorchPotential(network).compute([structure])[0].energy
    network.set_scale_shift([1.0] * 3, [-1e6 / len(structure)] * 3)
    total = TorchPotential(network).compute([structure])[0].energy
    assert total + 1e6 == pytest.approx(raw, abs=1e-7)


def test_unknown_elements_are_named() -> None:
    fluorine = Structure([1, 9], [[0, 0, 0], [0.9, 0, 0]])
    with pytest.raises(ModelError, match=r"atom 1 is F.*H, C, O"):
        species_index(fluorine, ELEMENTS)
    heavy = Structure([92, 1], [[0, 0, 0], [0.9, 0, 0]])
    with pytest.raises(ModelError, match="atom 0 is U"):
        species_index(heavy, ELEMENTS)


def test_stress_needs_a_cell_before_any_work(potential: TorchPotential) -> None:
    slab = replace(CRYSTALS["triclinic crystal"], pbc=np.array([True, True, False]))
    for structure in (SMALL[0], slab):
        with pytest.raises(StructureError, match="structure 1"):
            potential.compute([CRYSTALS["triclinic crystal"], structure], stress=True)


def test_stress_without_forces(potential: TorchPotential) -> None:
    crystal = CRYSTALS["triclinic crystal"]
    only, both = (
        potential.compute([crystal], forces=forces, stress=True)[0] for forces in (False, True)
    )
    assert only.forces is None
    np.testing.assert_array_equal(only.stress, both.stress)
    np.testing.assert_array_equal(both.stress, both.stress.T)


def test_a_potential_leaves_no_gradients_behind() -> None:
    network = tiny_network()
    potential = TorchPotential(network)
    potential.compute(SMALL[:2])
    assert not network.training
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert potential.info.dtype == "float32"
    assert potential.info.elements == ELEMENTS
