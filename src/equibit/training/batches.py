"""Structures with labels as batches for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from equibit.networks.base import AtomisticNetwork
from equibit.networks.graph import DenseGraph
from equibit.networks.potential import Batch, build_graph, orient
from equibit.structures import DatasetError, Structure
from equibit.structures.neighbors import check_distinct_positions
from equibit.structures.structure import FloatArray, IntArray


@dataclass
class LabelledBatch:
    """A batch and what quantum chemistry says about it, in the orientation of the batch.

    Attributes:
        inputs: what the network reads.
        energies: total energies in eV. Shape: [structures].
        forces: in eV/Å, 0 on padding; None where energies alone are learned. Shape: [*atoms, 3].
        n_atoms: real atoms per structure. Shape: [structures].
    """

    inputs: Batch
    energies: Tensor
    forces: Tensor | None
    n_atoms: Tensor


class EpochSampler(Sampler[int]):
    """Visits all structures once per epoch in an order fixed by (seed, epoch) alone.

    Resuming at an epoch therefore continues the same curve. Of several processes each takes every
    so-manieth structure.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // _process_share()[1]

    def __iter__(self) -> Iterator[int]:
        rank, processes = _process_share()
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        usable = len(self) * processes
        return iter(order[rank:usable:processes].tolist())


def _process_share() -> tuple[int, int]:
    """This process's rank and how many processes there are."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class EpochBatches(Sampler[list[int]]):
    """The structures of an epoch in full batches; in one, all are of about the same size.

    What the sampler leaves over of an epoch waits for another. The rest is sorted by size, equal ones
    in the sampler's order, and cut into batches, which come in an order of their own: little is
    padded, and a batch hardly ever has a shape that its neighbours have not. Structures that are all
    of one size come in the sampler's order.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, sizes: IntArray) -> None:
        self.sampler, self.batch_size, self.sizes = sampler, batch_size, sizes

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: a resumed run makes the iterator before it knows its epoch.
        order = np.fromiter(self.sampler, dtype=np.int64)[: len(self) * self.batch_size]
        turns = np.arange(len(self))
        if np.ptp(self.sizes) > 0:
            order = order[np.argsort(self.sizes[order], kind="stable")]
            # All processes take the same turns, so that they wait for each other as little as can be.
            turns = np.random.default_rng((self.sampler.seed, self.sampler.epoch, 1)).permutation(
                len(self)
            )
        yield from order.reshape(len(self), self.batch_size)[turns].tolist()


class Collator:
    """Turns indices into a ``LabelledBatch`` for one network.

    Attributes:
        structures: all of them.
        network: whose batches are made.
        forces: whether batches have labels of forces, too.
    """

    def __init__(
        self, structures: Sequence[Structure], network: AtomisticNetwork, *, forces: bool = True
    ) -> None:
        """Raises:
        DatasetError: no structures, or one without a label that is needed.
        StructureError: coinciding atoms.
        """
        check_labels(structures, forces=forces)
        for structure in structures:
            check_distinct_positions(structure)
        self.structures = structures
        self.network = network
        self.forces = forces

    @property
    def sizes(self) -> IntArray:
        """Atoms of each structure. Shape: [structures]."""
        return np.array([len(structure) for structure in self.structures], dtype=np.int64)

    def __call__(self, indices: Sequence[int]) -> LabelledBatch:
        chosen = [self.structures[i] for i in indices]
        config = self.network.config
        graph, edge_vectors = build_graph(chosen, config.elements, config.cutoff)
        batch = orient(self.network, graph, edge_vectors)
        return LabelledBatch(
            inputs=batch,
            energies=torch.tensor([s.energy for s in chosen], dtype=torch.float64),
            forces=_forces(chosen, batch) if self.forces else None,
            n_atoms=torch.tensor([len(s) for s in chosen]),
        )


def _forces(structures: Sequence[Structure], batch: Batch) -> Tensor:
    """Labels in the orientation of a batch, 0 on padding. Shape: → [*atoms, 3]."""
    graph = batch.graph
    if isinstance(graph, DenseGraph):
        forces = torch.zeros((*graph.species.shape, 3), dtype=torch.float64)
        for row, structure in enumerate(structures):
            forces[row, : len(structure)] = torch.from_numpy(structure.forces)
    else:
        forces = torch.from_numpy(np.concatenate([s.forces for s in structures]))
    if batch.orientation is not None:
        rotations = graph.atom_structures(batch.orientation)
        forces = (forces.unsqueeze(-2) @ rotations).squeeze(-2)
    return forces


def training_loader(collator: Collator, batch_size: int, seed: int) -> DataLoader[LabelledBatch]:
    """Shuffled batches of structures of similar size, see ``EpochBatches``."""
    size = len(collator.structures)
    return DataLoader(
        range(size),  # type: ignore[arg-type]
        batch_sampler=EpochBatches(EpochSampler(size, seed), batch_size, collator.sizes),
        collate_fn=collator,
    )


def validation_loader(collator: Collator, batch_size: int) -> DataLoader[LabelledBatch]:
    """All structures, ascending in size, equal ones in their own order."""
    order = np.argsort(collator.sizes, kind="stable")
    return DataLoader(
        order.tolist(),
        batch_size=batch_size,
        collate_fn=collator,
    )


def check_labels(structures: Sequence[Structure], *, forces: bool = True) -> None:
    """Raise ``DatasetError`` where a structure lacks the labels that training needs."""
    if not structures:
        raise DatasetError("no structures to train on; check the dataset and its split")
    wanted = ["energy", "forces"] if forces else ["energy"]
    for index, structure in enumerate(structures):
        missing = [name for name in wanted if getattr(structure, name) is None]
        if missing:
            advice = "training needs both labels; loss.forces=0 learns energies alone"
            if "energy" in missing:
                advice = "training needs the label of every structure"
            raise DatasetError(f"structure {index} has no {' and no '.join(missing)}; {advice}")


def fit_shift(
    structures: Sequence[Structure], energies: FloatArray, elements: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Energies of the elements by least squares on totals, and what they leave of these.

        min_μ Σ_s (E_s − Σ_Z n_sZ μ_Z)²  (minimum norm where compositions repeat)

    Returns:
        μ in eV, in the order of ``elements``, and E_s − Σ_Z n_sZ μ_Z. Shape: [elements], [structures].
    """
    counts = np.array(
        [[np.count_nonzero(s.numbers == z) for z in elements] for s in structures], dtype=np.float64
    )
    solution, *_ = np.linalg.lstsq(counts, energies, rcond=None)
    shift = solution.astype(np.float64)
    return shift, energies - counts @ shift


def fit_scale_shift(
    structures: Sequence[Structure], elements: Sequence[int], *, forces: bool = True
) -> tuple[list[float], list[float]]:
    """Per-element shift (see ``fit_shift``), and one scale for all elements.

        s_Z = F_rms·Å,  without forces ⟨(E_s − Σ_Z n_sZ μ_Z)²/n_s⟩^½

    Returns:
        (scale, shift) in eV, in the order of ``elements``.
    """
    energies = np.array([s.energy for s in structures], dtype=np.float64)
    shift, left = fit_shift(structures, energies, elements)
    if forces:
        spread = np.concatenate([np.asarray(s.forces).ravel() for s in structures])
    else:
        spread = left / np.sqrt([len(s) for s in structures])
    scale = max(float(np.sqrt(np.mean(spread**2))), 1e-3)
    return [scale] * len(elements), shift.tolist()
