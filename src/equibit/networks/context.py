"""What the layers of a network share about the structures they are looking at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Context:
    """Per-atom facts that linear layers may use; FP32 layers ignore it, quantised ones do not.

    Attributes:
        species: index into the network's elements. Shape: [*atoms].
        rotations: D_ℓ(R_i) of each atom's local frame by degree ℓ ≥ 1, or None when no layer
            quantises in local frames. Columns are the local axes, so v_local = D_ℓᵀ v.
            Shape: [*atoms, 2ℓ+1, 2ℓ+1].
        protected: atoms whose inputs stay float in this pass, or None. Shape: bool [*atoms].
    """

    species: Tensor
    rotations: dict[int, Tensor] | None = None
    protected: Tensor | None = None
