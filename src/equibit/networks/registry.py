"""Architectures by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from equibit.networks.base import AtomisticNetwork
from equibit.networks.equivariant_transformer import (
    EquivariantTransformer,
    EquivariantTransformerConfig,
)
from equibit.networks.so3krates import So3krates, So3kratesConfig

AnyNetworkConfig = Annotated[
    EquivariantTransformerConfig | So3kratesConfig, Field(discriminator="architecture")
]

_ARCHITECTURES: dict[type, type[AtomisticNetwork]] = {
    EquivariantTransformerConfig: EquivariantTransformer,
    So3kratesConfig: So3krates,
}


def build_network(config: EquivariantTransformerConfig | So3kratesConfig) -> AtomisticNetwork:
    """A network with random weights, as its configuration says."""
    return _ARCHITECTURES[type(config)](config)
