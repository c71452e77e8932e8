"""Codecs are odd, safe at zero, and exactly equivariant in local frames at every bit width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.networks.test_frames import CUTOFF, MOLECULES, dense, random_molecule, rotation
from torch import Tensor

from equibit.networks.context import Context
from equibit.networks.frames import local_frames
from equibit.networks.graph import Graph
from equibit.networks.harmonics import spherical_harmonics, wigner_d
from equibit.networks.potential import build_graph
from equibit.quantization.codecs import (
    MDDQCodebookCodec,
    MDDQCodec,
    VectorCodec,
    VectorQuantizer,
    tangential_straight_through,
)
from equibit.quantization.recipes import VectorSpec
from equibit.structures import Structure
from equibit.structures.errors import ModelError

CODECS = ["identity", "cartesian", "mddq", "mddq-cube", "mddq-codebook"]
ROUNDING = CODECS[1:]
WIDTHS = [(8, 8), (4, 6), (4, 8)]


def spec(codec: str, magnitude: int = 8, direction: int = 8, **options: str) -> VectorSpec:
    return VectorSpec(codec=codec, magnitude_bits=magnitude, direction_bits=direction, **options)  # type: ignore[arg-type]


def make(
    codec: str, degree: int = 1, magnitude: int = 8, direction: int = 8, scale: str = "dynamic"
) -> VectorCodec:
    return VectorCodec.named(codec)(spec(codec, magnitude, direction, scale=scale), degree).double()


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", ["dynamic", "static"])
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("codec", CODECS)
def test_forward_equals_decoded_codes(codec: str, degree: int, scale: str) -> None:
    quantizer = make(codec, degree, scale=scale)
    v = vectors(5, 2 * degree + 1, 16)
    torch.testing.assert_close(
        quantizer(v), quantizer.dequantize(*quantizer.codes(v)), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(
    ("codec", "bound"),
    [
        ("identity", 0.0),
        ("cartesian", 0.006),
        ("mddq", 0.01),
        ("mddq-cube", 0.01),
        ("mddq-codebook", 0.2),
    ],
)
def test_errors_have_the_size_of_the_codes(codec: str, bound: float) -> None:
    v = vectors(50, 3, 16)
    error = (make(codec)(v) - v).norm() / v.norm()
    assert error <= bound


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("codec", CODECS)
def test_odd_under_the_flip_of_any_component_and_zeros_stay(codec: str, degree: int) -> None:
    quantizer = make(codec, degree, 4, 6)
    v = vectors(20, 2 * degree + 1, 8)
    for component in range(2 * degree + 1):
        flip = torch.ones(2 * degree + 1, 1, dtype=torch.float64)
        flip[component] = -1
        assert torch.equal(quantizer(flip * v), flip * quantizer(v))
        blank = v.clone()
        blank[:, component] = 0
        assert not quantizer(blank)[:, component].any()


@pytest.mark.parametrize("codec", ROUNDING)
def test_noise_on_a_plane_of_symmetry_changes_nothing_noticeable(codec: str) -> None:
    quantizer = make(codec)
    v = vectors(50, 3, 8)
    v[:, 1] = 0
    noise = torch.zeros_like(v)
    noise[:, 1] = 1e-9
    torch.testing.assert_close(quantizer(v + noise), quantizer(v - noise), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["dynamic", "static"])
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("codec", CODECS)
def test_zero_vectors_have_finite_first_and_second_derivatives(
    codec: str, degree: int, scale: str, dtype: torch.dtype
) -> None:
    v = vectors(4, 2 * degree + 1, 6).to(dtype)
    v[0], v[1, :, 2], v[2] = 0, 0, 1e-30
    v.requires_grad_()
    out = make(codec, degree, scale=scale, magnitude=16).to(dtype)(v)
    (first,) = torch.autograd.grad((out**2).sum() + out.sum(), v, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), v, allow_unused=True)
    assert out.isfinite().all()
    assert first.isfinite().all()
    assert second is None or second.isfinite().all()


def test_codebook_gradient_is_tangential() -> None:
    """Prop. 3.1 of [P2]: ⟨u, ∂L/∂u⟩ = 0."""
    u = vectors(7, 3, 5)
    u = (u / u.norm(dim=-2, keepdim=True)).requires_grad_()
    codeword = MDDQCodebookCodec(spec("mddq-codebook"), 1).codebook.nearest(
        u.detach().transpose(1, 2)
    )
    codeword = codeword.transpose(1, 2)
    out = tangential_straight_through(u, codeword)
    torch.testing.assert_close(out, codeword)
    g = vectors(7, 3, 5, seed=1)
    (gradient,) = torch.autograd.grad((out * g).sum(), u)
    assert (u * gradient).sum(-2).abs().max() < 1e-14
    torch.testing.assert_close(gradient, g - u * (u * g).sum(-2, keepdim=True))


@pytest.mark.parametrize("codec", ["mddq", "mddq-cube", "mddq-codebook"])
def test_direction_errors_do_not_change_the_length_and_lengths_not_the_direction(
    codec: str,
) -> None:
    """Gradients split as in [P1] Eq. 1: radial with slope 1, tangential with slope near 1."""
    quantizer = make(codec, magnitude=12, direction=12)
    v = vectors(30, 3, 4)
    out = quantizer(v)
    length = v.norm(dim=-2)
    assert ((out.norm(dim=-2) - length).abs() <= length.amax(-1, keepdim=True) / 4095).all()
    jacobian = torch.func.jacrev(lambda w: quantizer(w[None, :, None])[0, :, 0])(v[0, :, 0])
    torch.testing.assert_close(jacobian, torch.eye(3).double(), rtol=0, atol=0.05)


def test_mddq_renormalisation_is_differentiated() -> None:
    """Against the derivative of r̂ (w/‖w‖) with w = û + (u − const), written out by hand."""
    quantizer = MDDQCodec(spec("mddq", 8, 4), 1).double()
    v = vectors(1, 3, 1).requires_grad_()
    g = vectors(1, 3, 1, seed=2)
    (gradient,) = torch.autograd.grad((quantizer(v) * g).sum(), v)
    step = quantizer.step(v)
    r = (v.square().sum(-2, keepdim=True) + (step / 4) ** 2).sqrt()
    r_hat, w = step * torch.round(r / step), torch.round(7 * v / r) / 7
    n = w.norm()
    radial = (w / n * g).sum() * v / r
    tangent = r_hat / n * (g - w * (w * g).sum() / n**2)
    expected = radial + (tangent - v * (v * tangent).sum() / r**2) / r
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize(("degree", "gain"), [(1, 0.85), (2, 0.8)])
def test_on_the_cube_the_largest_component_takes_the_largest_code(degree: int, gain: float) -> None:
    v = vectors(200, 2 * degree + 1, 16)
    cube, sphere = (make(codec, degree, 16, 8) for codec in ("mddq-cube", "mddq"))
    _, codes, _ = cube.codes(v)
    assert (codes.abs().amax(-2) == 127).all()
    assert (cube(v) - v).norm() < gain * (sphere(v) - v).norm()


def test_the_cube_is_differentiated_as_what_it_divides_by() -> None:
    """As for the sphere, with w = round(3 u/max|u|) and its slope 3/max|u|."""
    quantizer = make("mddq-cube", magnitude=8, direction=3)
    v = vectors(1, 3, 1).requires_grad_()
    g = vectors(1, 3, 1, seed=2)
    (gradient,) = torch.autograd.grad((quantizer(v) * g).sum(), v)
    step = quantizer.step(v)
    r = (v.square().sum(-2, keepdim=True) + (step / 4) ** 2).sqrt()
    side = (v / r).abs().max()
    r_hat, w = step * torch.round(r / step), torch.round(3 * v / r / side)
    n = w.norm()
    radial = (w / n * g).sum() * v / r
    tangent = 3 / side * r_hat / n * (g - w * (w * g).sum() / n**2)
    expected = radial + (tangent - v * (v * tangent).sum() / r**2) / r
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("codec", ["cartesian", "mddq", "mddq-cube", "mddq-codebook"])
def test_static_steps_are_calibrated_and_learn(codec: str) -> None:
    quantizer = make(codec, magnitude=4, direction=8, scale="static")
    v = 7 * vectors(40, 3, 8)
    before = (quantizer(v) - v).square().mean()
    quantizer.fit(v)
    quantizer.finish()
    after = (quantizer(v) - v).square().mean()
    assert after < before
    after.backward()
    assert quantizer.log2_step.grad.abs() > 0


def features(graph: Graph, edge_vectors: Tensor, degree: int, channels: int = 6) -> Tensor:
    """Vectors as two rounds of messages build them, of natural parity."""
    d = edge_vectors.norm(dim=-1, keepdim=True)
    envelope = torch.where(d < CUTOFF, (1 - (d / CUTOFF) ** 2) ** 2, 0)
    radial = envelope * torch.cos(d * torch.arange(1, channels + 1) * 0.4)
    radial = radial * (1 + graph.senders(graph.species)[..., None])
    harmonics = spherical_harmonics(degree, edge_vectors / d)
    v = graph.aggregate(harmonics.unsqueeze(-1) * radial.unsqueeze(-2))
    return v + graph.aggregate(0.3 * radial.unsqueeze(-2) * graph.senders(v))


ENVIRONMENTS = [*MOLECULES, "random-1", "random-2"]


def environment(name: str) -> tuple[Graph, Tensor]:
    if name.startswith("random"):
        return random_molecule(int(name[-1]))
    species, positions = MOLECULES[name]
    return dense(species), positions.double()[None]


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("degree", [1, 2])
def test_local_frames_are_exactly_equivariant(name: str, codec: str, degree: int) -> None:
    graph, positions = environment(name)
    for magnitude, direction in WIDTHS:
        quantizer = VectorQuantizer(
            spec(codec, magnitude, direction, frame="local"), degree
        ).double()

        def rounded(positions: Tensor, quantizer: VectorQuantizer = quantizer) -> Tensor:
            edges = graph.edge_vectors(positions)
            frames = local_frames(graph, edges, CUTOFF)
            context = Context(graph.species, {degree: wigner_d(degree, frames)})
            return quantizer(features(graph, edges, degree), context)

        reference = rounded(positions)
        for seed in range(3):
            q = rotation(seed + 20, reflect=seed == 2)
            turned = rounded(positions @ q.T)
            torch.testing.assert_close(
                turned,
                wigner_d(degree, q) @ reference,
                rtol=0,
                atol=1e-12 * max(1, reference.abs().max()),
            )


@pytest.mark.parametrize("displaced", [0.0, 0.2])
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("codec", CODECS)
def test_local_frames_are_exactly_equivariant_in_crystals(
    codec: str, degree: int, displaced: float
) -> None:
    """Rock salt, perfect (cubic sites) and with one atom moved off its site."""
    quantizer = VectorQuantizer(spec(codec, 4, 8, frame="local"), degree).double()
    sites = np.array([(0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1)])
    positions = 2.8 * np.concatenate((sites, sites + np.array([1, 0, 0]))).astype(float)
    positions[0] += displaced * np.array([0.5, 0.7, -0.3])
    cell = 5.6 * np.eye(3)

    def rounded(q: np.ndarray) -> Tensor:
        crystal = Structure(
            numbers=[11] * 4 + [17] * 4, positions=positions @ q.T, cell=cell @ q.T, pbc=True
        )
        graph, edges = build_graph([crystal], (11, 17), CUTOFF)
        context = Context(
            graph.species, {degree: wigner_d(degree, local_frames(graph, edges, CUTOFF))}
        )
        return quantizer(features(graph, edges, degree), context)

    reference = rounded(np.eye(3))
    for seed in range(2):
        q = rotation(seed, reflect=seed == 1)
        torch.testing.assert_close(
            rounded(q.numpy()), wigner_d(degree, q) @ reference, rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("codec", ROUNDING)
def test_the_laboratory_frame_is_not_equivariant(codec: str) -> None:
    graph, positions = random_molecule(1)
    quantizer = VectorQuantizer(spec(codec, frame="lab"), 1).double()
    context = Context(graph.species)
    q = rotation(3)
    reference = quantizer(features(graph, graph.edge_vectors(positions), 1), context)
    turned = quantizer(features(graph, graph.edge_vectors(positions @ q.T), 1), context)
    assert (turned - wigner_d(1, q) @ reference).abs().max() > 1e-4


def test_local_rounding_without_frames_says_what_to_do() -> None:
    quantizer = VectorQuantizer(spec("mddq", frame="local"), 1)
    with pytest.raises(ModelError, match="uses_local_frames"):
        quantizer(torch.zeros(1, 3, 4), Context(torch.zeros(1, dtype=torch.int64)))


@given(
    st.sampled_from(ROUNDING), st.integers(2, 10), st.integers(6, 10), st.integers(1, 2),
    st.integers(0, 10**6), st.floats(-4, 8),
)  # fmt: skip
def test_error_is_bounded_by_the_vector_at_any_width(
    codec: str, magnitude: int, direction: int, degree: int, seed: int, log_scale: float
) -> None:
    v = 10**log_scale * vectors(2, 2 * degree + 1, 3, seed=seed)
    out = make(codec, degree, magnitude, direction)(v)
    assert out.isfinite().all()
    largest = v.norm(dim=-2).amax(-1)[:, None, None]
    assert ((out - v).abs() <= 0.75 * largest).all()
