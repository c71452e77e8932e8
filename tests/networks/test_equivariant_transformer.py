"""The equivariant transformer keeps every promise of a potential, for each ℓ_max and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.potential_contract import PotentialContract
from torch._dynamo.testing import CompileCounterWithBackend

from equibit.networks.context import Context
from equibit.networks.equivariant_transformer import (
    ChannelProducts,
    EquivariantTransformer,
    EquivariantTransformerConfig,
    parse_irreps,
)
from equibit.networks.geometry import edge_geometry
from equibit.networks.harmonics import wigner_d
from equibit.networks.linear import EquivariantLinear
from equibit.networks.potential import TorchPotential, build_graph
from equibit.structures import Potential, Structure

ELEMENTS = (1, 6, 8)


def tiny_network(seed: int = 1, **changes: Any) -> EquivariantTransformer:
    """Two layers of eight channels, with contributions of the size that training gives them."""
    settings: dict[str, Any] = {
        "elements": ELEMENTS,
        "cutoff": 4.0,
        "irreps": "8x0e+8x1o",
        "layers": 2,
        "heads": 2,
        "radial_functions": 6,
        "splines": 12,
    }
    torch.manual_seed(seed)
    network = EquivariantTransformer(EquivariantTransformerConfig(**settings | changes))
    with torch.no_grad():
        network.head["output"].weight.normal_(std=network.head["output"].weight.shape[1] ** -0.5)
    elements = network.config.elements
    references = {1: (1.0, -13.6), 6: (1.5, -1029.0), 8: (0.7, -2041.0)}
    network.set_scale_shift(*zip(*(references[z] for z in elements), strict=True))
    return network


class TransformerContract(PotentialContract):
    """The checks for one irreps string, attention and normalisation."""

    irreps = "8x0e+8x1o"
    attention = "softmax"
    robust = True
    axial = False

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str) -> Potential:
        network = tiny_network(
            irreps=cls.irreps,
            attention=cls.attention,
            robust_attention=cls.robust,
            axial_messages=cls.axial,
        )
        return TorchPotential(network.to(getattr(torch, dtype)))


class TestScalarsOnly(TransformerContract):
    irreps = "8x0e"
    dtypes = ("float64",)


class TestVectors(TransformerContract):
    pass


class TestDegreeTwo(TransformerContract):
    irreps = "8x0e+8x1o+8x2e"


class TestAxialMessages(TransformerContract):
    irreps = "8x0e+8x1o+8x2e"
    attention = "linear"
    axial = True


class TestLinearAttention(TransformerContract):
    attention = "linear"
    dtypes = ("float64",)


class TestPlainAttention(TransformerContract):
    robust = False
    dtypes = ("float64",)


@pytest.mark.parametrize(
    ("irreps", "expected"),
    [
        ("64x0e", {0: 64}),
        ("64x0e+32x1o", {0: 64, 1: 32}),
        (" 4x1o + 8x0e + 4x2e+4x3o ", {0: 8, 1: 4, 2: 4, 3: 4}),
    ],
)
def test_irreps_are_read(irreps: str, expected: dict[int, int]) -> None:
    assert parse_irreps(irreps) == expected


@pytest.mark.parametrize(
    ("irreps", "message"),
    [
        ("64x0e+64x1", "64x1"),
        ("64*0e", r"64\*0e"),
        ("", "cannot read"),
        ("8x0e++8x1o", "cannot read ''"),
        ("8x0e+8x1e", "natural parity"),
        ("8x0o", "natural parity"),
        ("8x0e+8x0e", "once"),
        ("0x0e", "at least one channel"),
        ("8x1o", "without gaps"),
        ("8x0e+8x2e", "without gaps"),
        ("8x0e+8x1o+8x2e+8x3o+8x4e", "up to 3"),
    ],
)
def test_bad_irreps_are_refused(irreps: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EquivariantTransformerConfig(elements=ELEMENTS, irreps=irreps, heads=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"irreps": "8x0e+8x1o+4x2e"}, "same number of channels"),
        ({"heads": 3}, "do not divide the 8 channels of degree 0"),
        ({"irreps": "8x0e+2x1o", "heads": 4}, "do not divide the 2 channels of degree 1"),
        ({"layers": 0}, "layers"),
        ({"cutoff": 0.1}, "cutoff"),
        ({"attention": "softmx"}, "attention"),
        ({"layer": 2}, "layer"),
        ({"elements": (6, 1)}, "ascending"),
        ({"elements": ()}, "ascending"),
        ({"elements": (0, 1)}, "1 to 118"),
    ],
)
def test_bad_hyperparameters_are_named(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"elements": ELEMENTS, "irreps": "8x0e+8x1o", "heads": 2}
    EquivariantTransformerConfig(**good)
    with pytest.raises(ValidationError, match=message):
        EquivariantTransformerConfig(**good | changes)


def test_degrees_decide_what_is_built() -> None:
    mixings = [
        {
            m.degree
            for m in tiny_network(irreps=irreps).modules()
            if isinstance(m, EquivariantLinear)
        }
        for irreps in ("8x0e", "8x0e+8x1o", "8x0e+8x1o+8x2e")
    ]
    assert mixings == [set(), {1}, {1, 2}]


def test_vectors_see_angles_that_distances_to_neighbours_do_not_show() -> None:
    """Four neighbours at one distance each: only their angles differ between the two shapes."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    square = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=float)
    shapes = [
        Structure([6, 1, 1, 1, 1], np.concatenate([np.zeros((1, 3)), 1.9 * ends]))
        for ends in (corners, square)
    ]
    # Beyond the cutoff of 2.6 Å the ends do not see each other.
    gaps = []
    for irreps in ("8x0e", "8x0e+8x1o", "8x0e+8x1o+8x2e"):
        network = tiny_network(irreps=irreps, cutoff=2.6).double()
        one, other = TorchPotential(network).compute(shapes, forces=False)
        gaps.append(abs(one.atomic_energies[0] - other.atomic_energies[0]))
    assert gaps[0] < 1e-12
    assert gaps[2] > 1e-9


def test_axial_messages_carry_the_part_along_the_bond_to_every_degree() -> None:
    """A vector across the bond is not seen, its part along the bond reaches degrees one and two."""
    block = tiny_network(irreps="8x0e+8x1o+8x2e", axial_messages=True).double().attention[1]
    graph, edge_vectors = build_graph(
        [Structure([1, 6], np.array([[0.0, 0, 0], [0, 0, 1.1]]))], ELEMENTS, 4.0
    )
    geometry = edge_geometry(edge_vectors, 4.0, (1, 2), "polynomial", torch.float64)
    basis = torch.ones(*geometry.distances.shape, 6, dtype=torch.float64)
    x = torch.ones(1, 2, 8, dtype=torch.float64)

    def sums(vector: list[float]) -> dict[int, torch.Tensor]:
        sent = torch.tensor(vector, dtype=torch.float64)[:, None].expand(3, 8)
        vectors = {1: sent.expand(1, 2, 3, 8), 2: torch.zeros(1, 2, 5, 8, dtype=torch.float64)}
        return block(x, vectors, basis, geometry, graph, Context(graph.species))[1]

    # Components run y, z, x, as in e3nn.
    none, along, across = sums([0.0, 0, 0]), sums([0.0, 1, 0]), sums([1.0, 0, 0])
    assert (along[2] - none[2]).abs().max() > 1e-3
    torch.testing.assert_close(across[2], none[2])


@pytest.mark.parametrize("improper", [False, True])
def test_channel_products_turn_with_their_factors(improper: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    if (torch.linalg.det(rotation) < 0) != improper:
        rotation = -rotation
    products = ChannelProducts([1, 2, 3], 4).double()

    def features() -> dict[int, torch.Tensor]:
        return {
            degree: torch.randn(5, 2 * degree + 1, 4, dtype=torch.float64, generator=generator)
            for degree in (1, 2, 3)
        }

    def turned(features: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        return {degree: wigner_d(degree, rotation) @ x for degree, x in features.items()}

    u, t = features(), features()
    expected = turned(products(u, t))
    got = products(turned(u), turned(t))
    assert set(got) == {1, 2, 3}
    for degree in got:
        torch.testing.assert_close(got[degree], expected[degree], rtol=0, atol=1e-12)


def test_degree_one_alone_has_no_products() -> None:
    assert ChannelProducts([1], 4).paths == []


def test_parameters_start_near_the_energy_reference() -> None:
    torch.manual_seed(0)
    network = EquivariantTransformer(
        EquivariantTransformerConfig(elements=ELEMENTS, irreps="16x0e+16x1o", layers=2)
    )
    network.set_scale_shift([1.0] * 3, [-13.6, -1029.0, -2041.0])
    water = Structure([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    energy = TorchPotential(network).compute([water])[0].energy
    assert abs(energy - (-2041.0 - 2 * 13.6)) < 3.0


def test_casting_leaves_the_energy_reference_in_float64() -> None:
    network = tiny_network()
    network.set_scale_shift([1.0] * 3, [-13.6056931, -1029.12345678901, -2041.0])
    network = network.float().half().double().float()
    assert network.energy_shift.dtype == torch.float64
    assert network.energy_shift[1].item() == -1029.12345678901
    assert network.dtype == torch.float32


def test_products_are_compiled_once_for_all_sizes() -> None:
    """Molecules of all sizes share compiled code; a contraction of three would fix the size."""
    products = ChannelProducts([1, 2], channels=3)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(products, backend=counter, dynamic=True)
    for size in (6, 7, 9):
        u, t = ({k: torch.randn(2, size, 2 * k + 1, 3) for k in (1, 2)} for _ in range(2))
        for degree, value in products(u, t).items():
            torch.testing.assert_close(compiled(u, t)[degree], value)
    assert counter.frame_count == 1
