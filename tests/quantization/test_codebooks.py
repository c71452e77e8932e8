"""The look-up finds the nearest codeword exactly and respects every mirror plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equibit.quantization.codebooks import (
    Codebook,
    angular_error,
    codebook_points,
    even_254,
    fibonacci,
    flip_symmetric,
    icosphere,
)
from equibit.structures.errors import ConfigError

CODEBOOKS = {bits: Codebook.from_bits(bits) for bits in (6, 8, 10)}
component = st.floats(1e-3, 1) | st.floats(-1, -1e-3) | st.sampled_from([0.0, 0.5, 1e-9, -1e-20])


def directions(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    u = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (u / u.norm(dim=-1, keepdim=True)).to(dtype)


@pytest.mark.parametrize("frequency", range(1, 8))
def test_an_icosphere_has_its_symmetry(frequency: int) -> None:
    points = icosphere(frequency)
    assert len(points) == 10 * frequency**2 + 2
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 1, atol=1e-14)
    known = {tuple(p) for p in (points.round(9) + 0.0).tolist()}
    for flip in ([-1, 1, 1], [1, -1, 1], [1, 1, -1]):
        assert {tuple(p) for p in ((points * flip).round(9) + 0.0).tolist()} == known
    assert {tuple(p) for p in (np.roll(points, 1, -1).round(9) + 0.0).tolist()} == known
    fifth = 2 * np.pi / 5  # a five-fold axis through a vertex: the full icosahedral group follows
    golden = (1 + 5**0.5) / 2
    k = np.array([0, 1, golden]) / np.sqrt(1 + golden**2)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    turn = np.eye(3) + np.sin(fifth) * cross + (1 - np.cos(fifth)) * cross @ cross
    distance = np.linalg.norm((points @ turn.T)[:, None] - points[None], axis=-1).min(1)
    assert distance.max() < 1e-9
    has_axis = (np.abs(points - [0, 0, 1]).max(-1) < 1e-12).any()
    assert has_axis == (frequency % 2 == 0)


@pytest.mark.parametrize(
    ("points", "greatest", "mean"),
    [
        (icosphere(5), 8.7, 4.9),
        (icosphere(10), 4.4, 2.4),
        (fibonacci(256), 9.7, 4.9),
        (even_254(), 8.5, 4.82),
    ],
)
def test_angular_errors_are_those_of_the_method(
    points: np.ndarray, greatest: float, mean: float
) -> None:
    error = angular_error(points, 20_000)
    assert error.max <= greatest
    assert error.mean == pytest.approx(mean, rel=0.02)
    assert error.mean < error.rms < error.max


@pytest.mark.parametrize("bits", CODEBOOKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_look_up_agrees_with_brute_force(bits: int, dtype: torch.dtype) -> None:
    book = CODEBOOKS[bits]
    u = directions(20_000, bits, dtype)
    reached = (book.nearest(u) * u).sum(-1)
    best = (u @ book.points.to(dtype).T).max(-1).values
    assert (best - reached).max() <= 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(book.points.to(dtype)[book(u)], book.nearest(u), rtol=0, atol=0)


@given(st.tuples(component, component, component).filter(any), st.sampled_from(list(CODEBOOKS)))
def test_the_look_up_agrees_with_brute_force_anywhere(
    v: tuple[float, float, float], bits: int
) -> None:
    book = CODEBOOKS[bits]
    u = torch.tensor(v, dtype=torch.float64)
    u = u / u.norm()
    allowed = book.points[(book.points[:, u == 0] == 0).all(-1)]
    best = (allowed @ u).max()
    assert (best - book.nearest(u) @ u) <= 1e-14


@given(st.tuples(component, component, component).filter(any), st.sampled_from(list(CODEBOOKS)))
def test_odd_under_each_flip_and_zeros_stay_zero(v: tuple[float, float, float], bits: int) -> None:
    book = CODEBOOKS[bits]
    u = torch.tensor(v, dtype=torch.float64)
    codeword = book.nearest(u)
    for axis in range(3):
        flip = torch.ones(3, dtype=torch.float64)
        flip[axis] = -1
        assert torch.equal(book.nearest(flip * u), flip * codeword)
    assert not codeword[u == 0].any()


@pytest.mark.parametrize("bits", CODEBOOKS)
def test_corners_and_edges_of_cells_are_found(bits: int) -> None:
    """Points whose octahedral coordinates are multiples of the cell size, and their float32 noise."""
    book = CODEBOOKS[bits]
    n = book.cells
    grid = torch.tensor([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)])
    for dtype in (torch.float32, torch.float64):
        for noise in (-1e-7, 0.0, 1e-7):
            u = grid.to(dtype) / n + noise * torch.tensor([1, -1, 0], dtype=dtype)
            u[grid == 0] = 0
            best = (u @ book.points.to(dtype).T).max(-1).values
            interior = (grid > 0).all(-1)
            reached = (book.nearest(u) * u).sum(-1)
            assert (best - reached)[interior].max() <= 4e-7


def test_every_codeword_is_its_own_nearest() -> None:
    for book in CODEBOOKS.values():
        assert torch.equal(book(book.points), torch.arange(len(book.points)))


def test_the_zero_vector_gets_a_code_and_no_nan() -> None:
    book = CODEBOOKS[6]
    assert book(torch.zeros(2, 3)).shape == (2,)
    assert book.nearest(torch.zeros(3)).isfinite().all()


def test_codebooks_fit_into_their_bits_and_hold_the_axes() -> None:
    for bits in range(6, 13):
        points = codebook_points(bits)
        assert 0.6 * 2**bits < len(points) <= 2**bits
        assert len(Codebook.from_points(points).points) == len(points)


def test_points_without_mirror_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="flip"):
        Codebook.from_points(fibonacci(100))
    with pytest.raises(ConfigError, match="six axes"):
        Codebook.from_points(icosphere(3))
    assert len(Codebook.from_points(flip_symmetric(3)).points) == 98


@pytest.mark.parametrize(
    "call", [lambda: icosphere(0), lambda: fibonacci(1), lambda: codebook_points(3)]
)
def test_impossible_sizes_are_refused(call: object) -> None:
    with pytest.raises(ConfigError):
        call()  # type: ignore[operator]
