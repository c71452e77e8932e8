"""Coupling tensors without torch equal those of the networks."""

from __future__ import annotations

import numpy as np
import pytest

from equibit.engine.couplings import coupled_paths, coupling
from equibit.networks.equivariant_transformer import ChannelProducts
from equibit.networks.harmonics import clebsch_gordan


@pytest.mark.parametrize("path", coupled_paths(3))
def test_equals_the_tensor_of_the_networks(path: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(coupling(*path), clebsch_gordan(*path).numpy(), atol=1e-13)


@pytest.mark.parametrize("max_degree", [1, 2, 3])
def test_paths_come_in_the_order_of_the_weights(max_degree: int) -> None:
    degrees = list(range(1, max_degree + 1))
    assert coupled_paths(max_degree) == ChannelProducts(degrees, 2).paths
