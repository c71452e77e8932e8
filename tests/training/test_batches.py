"""What the training loop is fed: order, labels, orientation, energy reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.networks.test_equivariant_transformer import tiny_network
from tests.training.toy import ATOMIC_ENERGIES, mixed, waters

import equibit.training.batches as batches
from equibit.networks.graph import DenseGraph, SparseGraph
from equibit.networks.potential import TorchPotential, energies_and_edge_gradients
from equibit.structures import DatasetError, ModelError, Structure, StructureError
from equibit.training.batches import (
    Collator,
    EpochBatches,
    EpochSampler,
    check_labels,
    fit_scale_shift,
    training_loader,
    validation_loader,
)


@given(
    size=st.integers(min_value=1, max_value=50),
    seed=st.integers(min_value=0, max_value=2**32),
    epoch=st.integers(min_value=0, max_value=10_000),
)
def test_an_epoch_visits_everything_once_in_an_order_of_its_own(
    size: int, seed: int, epoch: int
) -> None:
    first, second = EpochSampler(size, seed), EpochSampler(size, seed)
    first.set_epoch(epoch)
    for earlier in (0, epoch):  # the order does not depend on what was drawn before
        second.set_epoch(earlier)
        order = list(second)
    assert order == list(first)
    assert sorted(order) == list(range(size))


def test_epochs_and_seeds_change_the_order() -> None:
    orders = []
    for seed in (0, 1):
        sampler = EpochSampler(40, seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.append(tuple(sampler))
    assert len(set(orders)) == 6


@given(size=st.integers(min_value=3, max_value=60), processes=st.integers(min_value=2, max_value=3))
def test_processes_share_an_epoch_without_overlap(size: int, processes: int) -> None:
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(processes):
            patch.setattr(batches, "_process_share", lambda rank=rank: (rank, processes))
            sampler = EpochSampler(size, 3)
            sampler.set_epoch(7)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler) == size // processes
    seen = [index for share in shares for index in share]
    assert len(set(seen)) == len(seen)


@given(
    sizes=st.lists(st.integers(min_value=1, max_value=6), min_size=4, max_size=60),
    batch_size=st.integers(min_value=1, max_value=4),
    epoch=st.integers(min_value=0, max_value=100),
)
def test_batches_hold_structures_of_similar_size(
    sizes: list[int], batch_size: int, epoch: int
) -> None:
    """Sorted by their smallest size, batches do not overlap, and all of them are full."""
    made = []
    for _ in range(2):
        sampler = EpochSampler(len(sizes), seed=5)
        sampler.set_epoch(epoch)
        made.append(list(EpochBatches(sampler, batch_size, np.array(sizes))))
    batches = made[0]
    assert made[0] == made[1]
    assert len(batches) == len(sizes) // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    seen = [index for batch in batches for index in batch]
    assert len(set(seen)) == len(seen)
    spans = sorted((min(sizes[k] for k in b), max(sizes[k] for k in b)) for b in batches)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_batches_change_with_the_epoch_and_come_in_no_order_of_size() -> None:
    sizes = np.repeat([2, 3, 4, 5], 10)
    sampler = EpochSampler(40, seed=0)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append(list(EpochBatches(sampler, 5, sizes)))
    assert {tuple(sorted(b)) for b in epochs[0]} != {tuple(sorted(b)) for b in epochs[1]}
    largest = [max(sizes[b]) for b in epochs[0]]
    assert largest != sorted(largest)


def test_structures_of_one_size_come_in_the_order_of_the_sampler() -> None:
    sampler = EpochSampler(11, seed=2)
    sampler.set_epoch(4)
    batches = list(EpochBatches(sampler, 3, np.full(11, 7)))
    assert [index for batch in batches for index in batch] == list(sampler)[:9]


def test_the_epoch_counts_that_is_known_when_the_first_batch_is_drawn() -> None:
    """A resumed run makes the iterator first."""
    sampler = EpochSampler(20, seed=0)
    begun = iter(EpochBatches(sampler, 4, np.arange(20)))
    sampler.set_epoch(3)
    assert list(begun) == list(EpochBatches(sampler, 4, np.arange(20)))


def test_the_loader_starts_every_epoch_anew() -> None:
    """Lightning finds the sampler in the loader and tells it the epoch."""
    loader = training_loader(Collator(mixed(12), tiny_network()), 3, seed=0)
    assert len(loader) == 4
    sampler = loader.batch_sampler.sampler  # type: ignore[union-attr]
    assert isinstance(sampler, EpochSampler)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append([batch.energies.tolist() for batch in loader])
    assert orders[0] == orders[2] != orders[1]
    other = training_loader(Collator(mixed(12), tiny_network()), 3, seed=1)
    assert [batch.energies.tolist() for batch in other] != orders[0]


def test_scale_and_shift_recover_the_energies_of_the_elements() -> None:
    """Totals of thousands of eV give back per-element energies to round-off of float64."""
    generator = np.random.default_rng(0)
    energies = {1: -13.60569, 6: -1029.49999999, 8: -2041.123456789}
    structures = []
    for _ in range(30):
        numbers = generator.choice([1, 6, 8], generator.integers(1, 12))
        positions = 3.0 * np.arange(numbers.size)[:, None] * np.eye(3)[0]
        structures.append(
            Structure(
                numbers,
                positions,
                energy=sum(energies[int(z)] for z in numbers),
                forces=0.5 * generator.choice([-1, 1], (numbers.size, 3)),
            )
        )
    scale, shift = fit_scale_shift(structures, (1, 6, 8))
    np.testing.assert_allclose(shift, list(energies.values()), rtol=0, atol=1e-9)
    np.testing.assert_allclose(scale, 0.5, rtol=1e-12)


def test_without_forces_the_scale_is_what_the_elements_leave_of_an_atom() -> None:
    """E = Σ_Z n_Z μ_Z ± 0.3 √n leaves 0.3 eV an atom."""
    generator = np.random.default_rng(1)
    energies = {1: -13.0, 8: -2041.0}
    structures = []
    for k in range(400):
        numbers = generator.choice([1, 8], generator.integers(2, 9))
        positions = 3.0 * np.arange(numbers.size)[:, None] * np.eye(3)[0]
        left = (-1) ** k * 0.3 * numbers.size**0.5
        energy = sum(energies[int(z)] for z in numbers) + left
        structures.append(Structure(numbers, positions, energy=energy))
    scale, shift = fit_scale_shift(structures, (1, 8), forces=False)
    np.testing.assert_allclose(scale, 0.3, rtol=0.02)
    np.testing.assert_allclose(shift, list(energies.values()), atol=0.2)


def test_one_composition_is_shared_out_and_absent_elements_stay_at_zero() -> None:
    structures = waters(10)
    scale, shift = fit_scale_shift(structures, (1, 6, 8))
    mean = np.mean([s.energy for s in structures])
    assert 2 * shift[0] + shift[2] == pytest.approx(mean, abs=1e-9)
    assert shift[1] == 0
    assert len(set(scale)) == 1


def test_vanishing_forces_leave_a_scale_that_can_be_divided_by() -> None:
    still = [replace(s, forces=np.zeros((3, 3))) for s in waters(3)]
    assert fit_scale_shift(still, (1, 8))[0][0] > 0


@pytest.mark.parametrize("structures", [waters(4), mixed(8)], ids=["dense", "sparse"])
def test_labels_turn_with_the_batch(structures: list[Structure]) -> None:
    """Errors computed in the orientation of the batch are those of the laboratory, turned."""
    network = tiny_network().double()
    batch = Collator(structures, network)(range(len(structures)))
    graph = batch.inputs.graph
    assert isinstance(graph, DenseGraph if len(structures) == 4 else SparseGraph)
    assert batch.n_atoms.tolist() == [len(s) for s in structures]
    assert batch.energies.dtype == torch.float64
    atomic, gradients = energies_and_edge_gradients(network, batch.inputs)
    errors = (graph.forces(gradients) - batch.forces).norm(dim=-1)[graph.atom_mask]
    predictions = TorchPotential(network).compute(structures)
    expected = np.concatenate(
        [
            np.linalg.norm(p.forces - s.forces, axis=1)
            for p, s in zip(predictions, structures, strict=True)
        ]
    )
    np.testing.assert_allclose(errors.detach().numpy().ravel(), expected, atol=1e-9)
    np.testing.assert_allclose(
        graph.per_structure(atomic).detach().numpy(), [p.energy for p in predictions], atol=1e-8
    )


def test_padding_has_no_force_and_no_label() -> None:
    structures = [waters(1)[0], mixed(3)[1], mixed(3)[2]]
    network = tiny_network().double()
    batch = Collator(structures, network)([2, 0, 1])
    graph = batch.inputs.graph
    assert isinstance(graph, DenseGraph)
    assert batch.n_atoms.tolist() == [1, 3, 2]
    _, gradients = energies_and_edge_gradients(network, batch.inputs)
    padding = ~graph.atom_mask
    assert padding.sum() == 3
    assert (graph.forces(gradients)[padding] == 0).all()
    assert (batch.forces[padding] == 0).all()


def test_loaders_drop_an_unfinished_training_batch_but_no_validation_structure() -> None:
    collator = Collator(waters(7), tiny_network())
    assert [len(b.energies) for b in training_loader(collator, 3, seed=0)] == [3, 3]
    assert [len(b.energies) for b in validation_loader(collator, 3)] == [3, 3, 1]
    energies = torch.cat([b.energies for b in validation_loader(collator, 3)])
    assert energies.tolist() == [s.energy for s in collator.structures]


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_missing_labels_are_named(label: str) -> None:
    structures = waters(3)
    structures[1] = replace(structures[1], **{label: None})
    with pytest.raises(DatasetError, match=f"structure 1 has no {label}"):
        Collator(structures, tiny_network())


def test_energies_alone_need_no_forces() -> None:
    structures = [replace(s, forces=None) for s in waters(3)]
    with pytest.raises(DatasetError, match=r"no forces; .*loss\.forces=0 learns energies alone"):
        Collator(structures, tiny_network())
    batch = Collator(structures, tiny_network(), forces=False)(range(3))
    assert batch.forces is None
    assert batch.energies.tolist() == [s.energy for s in structures]
    structures[1] = replace(structures[1], energy=None)
    with pytest.raises(DatasetError, match="structure 1 has no energy"):
        Collator(structures, tiny_network(), forces=False)


def test_validation_batches_ascend_in_size() -> None:
    structures = [s for s in mixed(12) if not s.periodic]
    loader = validation_loader(Collator(structures, tiny_network()), 4)
    sizes = [size for batch in loader for size in batch.n_atoms.tolist()]
    assert sizes == sorted(len(s) for s in structures)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(DatasetError, match="no structures"):
        check_labels([])


def test_coinciding_atoms_are_refused_before_training() -> None:
    water = waters(1)[0]
    positions = water.positions.copy()
    positions[2] = positions[1]
    with pytest.raises(StructureError, match=r"1.*2|2.*1"):
        Collator([replace(water, positions=positions)], tiny_network())


def test_unknown_elements_are_named() -> None:
    nitrogen = Structure([7], [[0.0, 0, 0]], energy=-1.0, forces=np.zeros((1, 3)))
    with pytest.raises(ModelError, match="atom 0 is N"):
        Collator([nitrogen], tiny_network())([0])


def test_toy_labels_are_consistent() -> None:
    """The fixture itself: a lone oxygen has the oxygen's energy and no force."""
    lone = mixed(3)[2]
    assert lone.energy == ATOMIC_ENERGIES[8]
    assert (lone.forces == 0).all()
