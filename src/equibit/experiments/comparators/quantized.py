"""A network of another package after post-training quantisation by our own tools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equibit.experiments.comparators.networks import ForeignNetwork, Molecules
from equibit.experiments.comparators.packages import need
from equibit.networks.frames import local_frames
from equibit.networks.graph import SparseGraph
from equibit.quantization.convert import calibrate
from equibit.quantization.irreps import (
    Known,
    matrix_layer,
    packed_bytes,
    quantize_irreps_,
)
from equibit.quantization.recipes import get_recipe
from equibit.structures.structure import Structure


class QuantizedNetwork(ForeignNetwork):
    """A network built from e3nn whose matrix products and gates are rounded by a recipe.

    Attributes:
        network: the parent, whose layers are rounded in place.
        bytes, parent_bytes: of its numbers, rounded and in FP32.
    """

    def __init__(
        self,
        network: ForeignNetwork,
        recipe: str,
        *,
        keep_fp32: Sequence[str] = (),
        also: Known | None = None,
    ) -> None:
        super().__init__(network.elements, network.cutoff)
        self.network = network
        self.energy_scale.copy_(network.energy_scale)
        self.energy_shift.copy_(network.energy_shift)
        vectors = get_recipe(recipe).vectors
        self._local = vectors.codec != "identity" and vectors.frame == "local"
        self._surroundings = quantize_irreps_(network, recipe, keep_fp32=keep_fp32, also=also)
        self.bytes, self.parent_bytes = packed_bytes(network)

    def raw_energies(self, molecules: Molecules) -> Tensor:
        if self._local:
            graph = SparseGraph(
                molecules.species,
                molecules.structures,
                molecules.receivers,
                molecules.senders,
                molecules.n_structures,
            )
            vectors = molecules.edge_vectors.detach()
            frames = local_frames(graph, vectors, self.cutoff)
            self._surroundings.set_frames(frames, self.dtype)
        return self.network.raw_energies(molecules)

    def fit(self, structures: Sequence[Structure]) -> None:
        """Calibrate static steps on structures, then move the energies of all by one constant.

        Rounding moves all energies of a molecule alike, and the labels tell by how much.
        """
        batches = [self.batch(structures[k : k + 16]) for k in range(0, len(structures), 16)]
        calibrate(self, batches, run=lambda network, batch: network(batch))  # type: ignore[arg-type]
        errors, atoms = [], []
        with torch.no_grad():
            for k, batch in enumerate(batches):
                energies = batch.per_structure(self(batch))
                labels = [float(s.energy or 0.0) for s in structures[16 * k : 16 * (k + 1)]]
                errors.append(torch.tensor(labels, dtype=torch.float64) - energies)
                atoms += [len(s) for s in structures[16 * k : 16 * (k + 1)]]
        self.energy_shift += torch.cat(errors).sum() / sum(atoms)


def nequip_layers() -> Known:
    """The matrix products that NequIP's package adds to those of e3nn."""
    linear = need("nequip.nn.mlp").ScalarLinearLayer
    return {linear: lambda m: matrix_layer(m.in_features, m.out_features, out_axis=1)}
