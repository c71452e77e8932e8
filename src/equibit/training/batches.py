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


@dataclass
class LabelledBatch:
    """A batch and what quantum chemistry says about it, in the orientation of the batch.

    Attributes:
        inputs: what the network reads.
        energies: total energies in eV. Shape: [structures].
        forces: in eV/Å, 0 on padding. Shape: [*atoms, 3].
        n_atoms: real atoms per structure. Shape: [structures].
    """

    inputs: Batch
    energies: Tensor
    forces: Tensor
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


class Collator:
    """Turns indices into a ``LabelledBatch`` for one network."""

    def __init__(self, structures: Sequence[Structure], network: AtomisticNetwork) -> None:
        check_labels(structures)
        for structure in structures:
            check_distinct_positions(structure)
        self.structures = structures
        self.network = network

    def __call__(self, indices: Sequence[int]) -> LabelledBatch:
        chosen = [self.structures[i] for i in indices]
        config = self.network.config
        graph, edge_vectors = build_graph(chosen, config.elements, config.cutoff)
        batch = orient(self.network, graph, edge_vectors)
        if isinstance(graph, DenseGraph):
            forces = torch.zeros((*graph.species.shape, 3), dtype=torch.float64)
            for row, structure in enumerate(chosen):
                forces[row, : len(structure)] = torch.from_numpy(structure.forces)
        else:
            forces = torch.from_numpy(np.concatenate([s.forces for s in chosen]))
        if batch.orientation is not None:
            rotations = graph.atom_structures(batch.orientation)
            forces = (forces.unsqueeze(-2) @ rotations).squeeze(-2)
        return LabelledBatch(
            inputs=batch,
            energies=torch.tensor([s.energy for s in chosen], dtype=torch.float64),
            forces=forces,
            n_atoms=torch.tensor([len(s) for s in chosen]),
        )


def training_loader(collator: Collator, batch_size: int, seed: int) -> DataLoader[LabelledBatch]:
    """Shuffled batches of equal size; a remainder smaller than a batch waits for another epoch."""
    size = len(collator.structures)
    return DataLoader(
        range(size),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=EpochSampler(size, seed),
        collate_fn=collator,
        drop_last=True,
    )


def validation_loader(collator: Collator, batch_size: int) -> DataLoader[LabelledBatch]:
    """All structures in their own order."""
    return DataLoader(
        range(len(collator.structures)),  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=collator,
    )


def check_labels(structures: Sequence[Structure]) -> None:
    """Raise ``DatasetError`` where a structure lacks the labels that training needs."""
    if not structures:
        raise DatasetError("no structures to train on; check the dataset and its split")
    for index, structure in enumerate(structures):
        missing = [name for name in ("energy", "forces") if getattr(structure, name) is None]
        if missing:
            raise DatasetError(
                f"structure {index} has no {' and no '.join(missing)}; training needs both labels"
            )


def fit_scale_shift(
    structures: Sequence[Structure], elements: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Per-element shift by least squares on total energies, and the forces' rms as scale.

        min_μ Σ_s (E_s − Σ_Z n_sZ μ_Z)²  (minimum norm where compositions repeat),  s_Z = F_rms·Å

    Returns:
        (scale, shift) in eV, in the order of ``elements``.
    """
    counts = np.array(
        [[np.count_nonzero(s.numbers == z) for z in elements] for s in structures], dtype=np.float64
    )
    energies = np.array([s.energy for s in structures], dtype=np.float64)
    shift, *_ = np.linalg.lstsq(counts, energies, rcond=None)
    forces = np.concatenate([np.asarray(s.forces).ravel() for s in structures])
    scale = max(float(np.sqrt(np.mean(forces**2))), 1e-3)
    return [scale] * len(elements), shift.tolist()
