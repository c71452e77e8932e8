"""Networks of other packages as ``Potential``: edges in, atomic energies out, everything else here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equibit.evaluation.metrics import symbol
from equibit.structures.errors import ModelError
from equibit.structures.neighbors import neighbor_list
from equibit.structures.potential import PotentialInfo, Prediction
from equibit.structures.structure import Structure


@dataclass(frozen=True)
class Molecules:
    """Molecules as one list of atoms and one of directed edges (i, j), r_ij = r_j − r_i.

    Attributes:
        numbers: atomic numbers. Shape: [atoms].
        species: index into the network's elements. Shape: [atoms].
        positions: in Å, float64. Shape: [atoms, 3].
        structures: molecule of each atom, ascending. Shape: [atoms].
        receivers, senders: i and j of each edge, sorted by i. Shape: [edges].
        n_structures: how many molecules.
    """

    numbers: Tensor
    species: Tensor
    positions: Tensor
    structures: Tensor
    receivers: Tensor
    senders: Tensor
    n_structures: int

    @property
    def edge_vectors(self) -> Tensor:
        """r_ij in Å, float64. Shape: [edges, 3]."""
        return self.positions[self.senders] - self.positions[self.receivers]

    def per_structure(self, x: Tensor) -> Tensor:
        """Sum over the atoms of each molecule. Shape: [atoms] → [structures]."""
        return x.new_zeros(self.n_structures).index_add(0, self.structures, x)

    def to(self, device: str | torch.device) -> Molecules:
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if name != "n_structures"
        }
        return replace(self, **tensors)


class ForeignNetwork(nn.Module, ABC):
    """E_i = s_Z·ε_i + μ_Z, with ε from a network of another package and s, μ fitted to the data.

    Attributes:
        elements: atomic numbers, ascending.
        cutoff: of edges, in Å.
        energy_scale, energy_shift: s and μ in eV, float64. Shape: [elements].
    """

    energy_scale: Tensor
    energy_shift: Tensor

    def __init__(self, elements: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.elements = tuple(elements)
        self.cutoff = cutoff
        self.register_buffer("energy_scale", torch.ones(len(self.elements), dtype=torch.float64))
        self.register_buffer("energy_shift", torch.zeros(len(self.elements), dtype=torch.float64))

    @abstractmethod
    def raw_energies(self, molecules: Molecules) -> Tensor:
        """ε_i, differentiable in ``molecules.positions``. Shape: [atoms]."""

    def forward(self, molecules: Molecules) -> Tensor:
        """E_i in eV, float64. Shape: [atoms]."""
        raw = self.raw_energies(molecules).double()
        species = molecules.species
        return self.energy_scale[species] * raw + self.energy_shift[species]

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters())

    def batch(self, structures: Sequence[Structure]) -> Molecules:
        """The input of the network.

        Raises:
            ModelError: an unknown element, or a periodic structure.
            StructureError: coinciding atoms.
        """
        index = {z: k for k, z in enumerate(self.elements)}
        receivers, senders, species = [], [], []
        first = 0
        for structure in structures:
            if structure.periodic:
                raise ModelError("comparators take molecules; this structure is periodic")
            for atom, z in enumerate(structure.numbers.tolist()):
                if z not in index:
                    known = ", ".join(symbol(k) for k in self.elements)
                    raise ModelError(f"atom {atom} is {symbol(z)}; the network knows {known}")
                species.append(index[z])
            edges = neighbor_list(structure, self.cutoff)
            receivers.append(edges.receivers + first)
            senders.append(edges.senders + first)
            first += len(structure)
        sizes = [len(s) for s in structures]
        positions = np.concatenate([s.positions for s in structures])
        numbers = np.concatenate([s.numbers for s in structures])
        return Molecules(
            numbers=torch.as_tensor(numbers, dtype=torch.int64),
            species=torch.tensor(species),
            positions=torch.as_tensor(positions, dtype=torch.float64),
            structures=torch.repeat_interleave(torch.tensor(sizes)),
            receivers=torch.as_tensor(np.concatenate(receivers), dtype=torch.int64),
            senders=torch.as_tensor(np.concatenate(senders), dtype=torch.int64),
            n_structures=len(sizes),
        ).to(self.energy_scale.device)


Evaluate = Callable[[ForeignNetwork, Molecules], tuple[Tensor, Tensor]]


def energies_and_forces(
    network: ForeignNetwork, molecules: Molecules, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """E_i in eV and F_i = −∂E/∂r_i in eV/Å, float64. Shape: [atoms], [atoms, 3]."""
    positions = molecules.positions.detach().requires_grad_(True)
    atomic = network(replace(molecules, positions=positions))
    (gradient,) = torch.autograd.grad(atomic.sum(), positions, create_graph=create_graph)
    return atomic, -gradient


class ForeignPotential:
    """A ``Potential`` of a network of another package.

    Attributes:
        network: in evaluation mode.
        info: what is told of it; the cutoff is that of its edges.
    """

    def __init__(
        self, network: ForeignNetwork, name: str, evaluate: Evaluate = energies_and_forces
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self._evaluate = evaluate
        self._name = name

    @property
    def info(self) -> PotentialInfo:
        network = self.network
        dtype = str(network.dtype).removeprefix("torch.")
        return PotentialInfo(self._name, network.elements, network.cutoff, dtype, "fp32")

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        """Predictions in the order of ``structures``; forces cost little more and always come.

        Raises:
            ModelError: an unknown element, a periodic structure, or stress.
        """
        if stress:
            raise ModelError(f"{self._name} is compared on molecules; it gives no stress")
        if not structures:
            return []
        molecules = self.network.batch(structures)
        atomic, all_forces = self._evaluate(self.network, molecules)
        ends = np.cumsum([len(s) for s in structures])[:-1]
        energies = np.split(atomic.detach().cpu().numpy(), ends)
        parts = np.split(all_forces.detach().cpu().numpy(), ends)
        return [
            Prediction(
                energy=float(own.sum()), atomic_energies=own, forces=part if forces else None
            )
            for own, part in zip(energies, parts, strict=True)
        ]


def compiled_evaluation(network: ForeignNetwork, molecules: Molecules) -> Evaluate:
    """Energies and forces of batches shaped like ``molecules`` as one compiled graph.

    The derivative is traced with the energy, as NequIP's own compilation does. The network's
    weights must need no gradients, which is so once it is in a ``ForeignPotential``.

    Raises:
        ModelError: PyTorch cannot trace or compile this network here.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def both(positions: Tensor, receivers: Tensor, senders: Tensor) -> tuple[Tensor, Tensor]:
        moved = replace(molecules, positions=positions, receivers=receivers, senders=senders)
        return energies_and_forces(network, moved)

    inputs = (molecules.positions, molecules.receivers, molecules.senders)
    try:
        compiled = torch.compile(make_fx(both)(*inputs), dynamic=False)
        with torch.no_grad():
            compiled(*inputs)
    except Exception as error:  # whatever a foreign network stumbles over, it cannot be compiled
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot be compiled: {type(error).__name__}: {reason}") from error

    def evaluate(_: ForeignNetwork, given: Molecules) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            atomic, forces = compiled(given.positions, given.receivers, given.senders)
        return atomic, forces

    return evaluate
