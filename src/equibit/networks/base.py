"""What every network is to the rest of the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from equibit.networks.context import Context
from equibit.networks.geometry import Geometry
from equibit.networks.graph import Graph


def _ascending_elements(elements: tuple[int, ...]) -> tuple[int, ...]:
    if not elements or list(elements) != sorted(set(elements)):
        raise ValueError("list each atomic number once, ascending")
    if elements[0] < 1 or elements[-1] > 118:
        raise ValueError("atomic numbers run from 1 to 118")
    return elements


Elements = Annotated[tuple[int, ...], AfterValidator(_ascending_elements)]


class NetworkConfig(BaseModel):
    """Fields shared by all architectures; each adds its own.

    Attributes:
        architecture: the registered name.
        elements: atomic numbers the network knows, ascending.
        cutoff: r_c in Å.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    elements: Elements
    cutoff: float = Field(default=5.0, gt=0.5, le=20.0)


class AtomisticNetwork(nn.Module, ABC):
    """A network that turns a graph into one energy contribution per atom.

    Total energy: E = Σ_i (s_Z ε_i + μ_Z) with the scales s and shifts μ kept in float64.

    Attributes:
        harmonic_degrees: degrees ℓ ≥ 1 of the harmonics that ``forward`` reads.
        envelope: name of the cutoff function in ``geometry.ENVELOPES``.
        fp32_layers: name patterns of layers that quantisation leaves alone by default.
        weight_only_layers: name patterns of layers whose weights alone are rounded, if at all.
        edge_layers: name patterns of layers whose inputs are per edge, not per atom.
        message_layers: name patterns of layers whose inputs are sums over neighbours.
        readout_layers: layers of the last block that read invariants: the one through which its
            features reach the energy, then those before it.
        uses_local_frames: some layer rounds vectors in the atoms' own frames.
        uses_lab_frames: some layer rounds vectors in the laboratory frame.
        canonical_orientation: turn structures into an orientation of their own before rounding to
            the arithmetic of the network; only False to measure what that spares.
        recipe: how the network is quantised, None for a float one.
        protection: draws the atoms whose inputs stay float in a pass of training, or None.
    """

    harmonic_degrees: tuple[int, ...] = (1,)
    envelope: ClassVar[str] = "polynomial"
    fp32_layers: ClassVar[tuple[str, ...]] = ()
    weight_only_layers: ClassVar[tuple[str, ...]] = ()
    edge_layers: ClassVar[tuple[str, ...]] = ()
    message_layers: ClassVar[tuple[str, ...]] = ()
    readout_layers: tuple[str, ...] = ()
    energy_scale: Tensor
    energy_shift: Tensor
    recipe: Any
    protection: Callable[[Graph, Geometry], Tensor] | None

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recipe = None
        self.protection = None
        self.uses_local_frames = False
        self.uses_lab_frames = False
        self.canonical_orientation = True
        n_elements = len(config.elements)
        self.register_buffer("energy_scale", torch.ones(n_elements, dtype=torch.float64))
        self.register_buffer("energy_shift", torch.zeros(n_elements, dtype=torch.float64))

    @abstractmethod
    def forward(self, graph: Graph, geometry: Geometry, context: Context) -> Tensor:
        """ε_i before scale and shift, in the dtype of the parameters. Shape: → [*atoms]."""

    def blocks(self) -> list[str]:
        """Names of its blocks, in the order in which they act, for fitting one after the other."""
        return []

    def normalised_inputs(self) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
        """Normalisations and the layers behind them: name, then name and first input of each layer.

        A layer reads the outputs of its normalisation from that input on, one by one.
        """
        return []

    def set_scale_shift(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        """Per-element s_Z and μ_Z in eV, in the order of ``config.elements``."""
        self.energy_scale.copy_(torch.as_tensor(scale, dtype=torch.float64))
        self.energy_shift.copy_(torch.as_tensor(shift, dtype=torch.float64))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # .float() and .double() change the network's arithmetic, never the energy reference.
        scale, shift = self.energy_scale, self.energy_shift
        super()._apply(fn, recurse)
        device = self.energy_scale.device
        self.energy_scale, self.energy_shift = scale.to(device), shift.to(device)
        return self
