"""SchNet, DimeNet++, PaiNN, NequIP and MACE, each as its package provides it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from equibit.evaluation.metrics import symbol
from equibit.experiments.comparators.networks import ForeignNetwork, Molecules
from equibit.structures.errors import ModelError

CUTOFF = 5.0

INSTALL = {
    "torch_geometric": 'pip install "equibit[comparators]"',
    "nequip": 'pip install "equibit[comparators]"',
    "mace": 'pip install "equibit[comparators]" && pip install --no-deps mace-torch',
    "schnetpack": 'pip install "equibit[comparators]" && pip install --no-deps schnetpack',
    "tblite": 'pip install "equibit[data]"',
}


def need(module: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        ModelError: it is not installed, or does not run with what is; says how it is installed.
    """
    package = module.partition(".")[0]
    with _quiet():
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise ModelError(
                f"this needs {package}, which cannot be imported ({error}): {INSTALL[package]}"
            ) from error


class SchNet(ForeignNetwork):
    """SchNet of PyTorch Geometric (Schütt et al. 2017), with its default widths."""

    def __init__(self, elements: Sequence[int], neighbors: float, width: int = 128) -> None:
        super().__init__(elements, CUTOFF)
        module = need("torch_geometric.nn.models.schnet")
        self.edges = _GivenEdges()
        self.network = module.SchNet(
            hidden_channels=width,
            num_filters=width,
            num_interactions=6,
            cutoff=CUTOFF,
            interaction_graph=self.edges,
        )

    def raw_energies(self, molecules: Molecules) -> Tensor:
        distances = molecules.edge_vectors.to(self.dtype).norm(dim=-1)
        # PyTorch Geometric lists senders first.
        edges = torch.stack((molecules.senders, molecules.receivers))
        self.edges.given = edges, distances
        # Each atom as a molecule of its own: the network adds up the rest.
        own = torch.arange(len(molecules.numbers), device=distances.device)
        return self.network(molecules.numbers, molecules.positions, own).squeeze(-1)


class _GivenEdges(nn.Module):
    """In the place of a search for neighbours: what the caller has found.

    Attributes:
        given: edges and their lengths. Shape: [2, edges], [edges].
    """

    given: tuple[Tensor, Tensor]

    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.given


class DimeNetPlusPlus(ForeignNetwork):
    """DimeNet++ of PyTorch Geometric (Gasteiger et al. 2020), with the widths of its authors.

    Its own ``forward`` needs torch-cluster and torch-sparse to find edges and triplets; here these
    are given, and its layers do the rest.
    """

    def __init__(
        self, elements: Sequence[int], neighbors: float, width: int = 128, spherical: int = 7
    ) -> None:
        super().__init__(elements, CUTOFF)
        module = need("torch_geometric.nn.models.dimenet")
        self.network = module.DimeNetPlusPlus(
            hidden_channels=width,
            out_channels=1,
            num_blocks=4,
            int_emb_size=width // 2,
            basis_emb_size=8,
            out_emb_channels=2 * width,
            num_spherical=spherical,
            num_radial=min(6, spherical),
            cutoff=CUTOFF,
        )

    def raw_energies(self, molecules: Molecules) -> Tensor:
        network, i, j = self.network, molecules.receivers, molecules.senders
        vectors = -molecules.edge_vectors.to(self.dtype)  # of edge j → i, r_i − r_j
        inner, outer = _triplets(i, j)
        along, before = vectors[outer], vectors[inner]
        angle = torch.atan2(
            torch.linalg.cross(along, before).norm(dim=-1), (along * before).sum(-1)
        )
        distances = vectors.norm(dim=-1)
        radial = network.rbf(distances)
        angular = network.sbf(distances, angle, inner)
        atoms = len(molecules.numbers)
        x = network.emb(molecules.numbers, radial, i, j)
        energies = network.output_blocks[0](x, radial, i, num_nodes=atoms)
        blocks = zip(network.interaction_blocks, network.output_blocks[1:], strict=True)
        for interaction, output in blocks:
            x = interaction(x, radial, angular, inner, outer)
            energies = energies + output(x, radial, i, num_nodes=atoms)
        return energies.squeeze(-1)


def _triplets(receivers: Tensor, senders: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of edges k → j and j → i with k ≠ i. Shape: [triplets], [triplets]."""
    edges = torch.arange(len(receivers), device=receivers.device)
    starts = torch.searchsorted(receivers, senders)
    counts = torch.searchsorted(receivers, senders, right=True) - starts
    outer = torch.repeat_interleave(edges, counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    inner = torch.arange(len(outer), device=edges.device) - first + starts[outer]
    distinct = senders[inner] != receivers[outer]
    return inner[distinct], outer[distinct]


class PaiNN(ForeignNetwork):
    """PaiNN of SchNetPack (Schütt et al. 2021), 128 features, three interactions."""

    def __init__(self, elements: Sequence[int], neighbors: float, width: int = 128) -> None:
        super().__init__(elements, CUTOFF)
        schnetpack = _schnetpack()
        layers = need("schnetpack.nn")
        self.representation = schnetpack.PaiNN(
            n_atom_basis=width,
            n_interactions=3,
            radial_basis=layers.GaussianRBF(n_rbf=20, cutoff=CUTOFF),
            cutoff_fn=layers.CosineCutoff(CUTOFF),
        )
        self.readout = layers.build_mlp(n_in=width, n_out=1)

    def raw_energies(self, molecules: Molecules) -> Tensor:
        inputs = {
            "_atomic_numbers": molecules.numbers,
            "_Rij": molecules.edge_vectors.to(self.dtype),
            "_idx_i": molecules.receivers,
            "_idx_j": molecules.senders,
        }
        features = self.representation(inputs)["scalar_representation"]
        return self.readout(features).squeeze(-1)


def _schnetpack() -> ModuleType:
    """Its representations. Version 2.1.1 imports a type variable that PyTorch has renamed."""
    loader: Any = importlib.import_module("torch.utils.data.dataloader")
    lent = not hasattr(loader, "T_co")
    if lent:
        loader.T_co = loader._T_co
    try:
        return need("schnetpack.representation")
    finally:
        if lent:
            del loader.T_co


class NequIP(ForeignNetwork):
    """NequIP of its published package (Batzner et al. 2022): four layers, degree 2, 32 features."""

    def __init__(
        self,
        elements: Sequence[int],
        neighbors: float,
        width: int = 32,
        layers: int = 4,
        degree: int = 2,
    ) -> None:
        super().__init__(elements, CUTOFF)
        model = need("nequip.model")
        with _quiet():
            _initialise_nequip()
            self.network = model.NequIPGNNModel(
                seed=torch.initial_seed() % 2**31,
                model_dtype="float32",
                compile_mode="eager",
                type_names=[symbol(z) for z in elements],
                r_max=CUTOFF,
                num_layers=layers,
                l_max=degree,
                parity=False,
                num_features=width,
                radial_mlp_depth=2,
                radial_mlp_width=64,
                avg_num_neighbors=neighbors,
                per_type_energy_scales=1.0,
                per_type_energy_shifts=0.0,
                do_derivatives=False,
            )

    def raw_energies(self, molecules: Molecules) -> Tensor:
        data = {
            "pos": molecules.positions,
            "atom_types": molecules.species,
            "edge_index": torch.stack((molecules.receivers, molecules.senders)),
            "batch": molecules.structures,
            "num_atoms": torch.bincount(molecules.structures, minlength=molecules.n_structures),
        }
        return self.network(data)["atomic_energy"].squeeze(-1)


def _initialise_nequip() -> None:
    """What NequIP asks for before a model is built, without what it changes for everyone else."""
    from lightning.pytorch.utilities.seed import isolate_rng

    state = need("nequip.utils.global_state")
    if state.global_state_initialized():
        return
    dtype = torch.get_default_dtype()
    with isolate_rng():
        state.set_global_state()
    torch.set_default_dtype(dtype)


class Mace(ForeignNetwork):
    """MACE of its published package (Batatia et al. 2022): two layers, correlation 3."""

    def __init__(
        self, elements: Sequence[int], neighbors: float, irreps: str = "64x0e+64x1o"
    ) -> None:
        super().__init__(elements, CUTOFF)
        modules = need("mace.modules")
        from e3nn import o3

        with _quiet():
            self.network = modules.MACE(
                r_max=CUTOFF,
                num_bessel=8,
                num_polynomial_cutoff=5,
                max_ell=3,
                interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
                num_interactions=2,
                num_elements=len(self.elements),
                hidden_irreps=o3.Irreps(irreps),
                MLP_irreps=o3.Irreps("16x0e"),
                atomic_energies=torch.zeros(len(self.elements)).numpy(),
                avg_num_neighbors=neighbors,
                atomic_numbers=list(self.elements),
                correlation=3,
                gate=torch.nn.functional.silu,
            )

    def raw_energies(self, molecules: Molecules) -> Tensor:
        positions = molecules.positions.to(self.dtype)
        zeros = positions.new_zeros
        counts = torch.bincount(molecules.structures, minlength=molecules.n_structures)
        edges = len(molecules.senders)
        data: dict[str, Any] = {
            "positions": positions,
            "node_attrs": torch.nn.functional.one_hot(molecules.species, len(self.elements)).to(
                positions
            ),
            "edge_index": torch.stack((molecules.senders, molecules.receivers)),
            "shifts": zeros(edges, 3),
            "unit_shifts": zeros(edges, 3),
            "cell": zeros(3 * molecules.n_structures, 3),
            "batch": molecules.structures,
            "ptr": torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        }
        return self.network(data, compute_force=False)["node_energy"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """These packages warn about each other and about accelerators that are not there."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
