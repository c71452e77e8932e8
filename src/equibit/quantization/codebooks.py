"""Directions on the sphere: point sets, the exact nearest one in O(1), and their angular errors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equibit.structures.errors import ConfigError

Points = NDArray[np.float64]

_BLOCK = 8  # cells per side that share a first, coarser search
_MARGIN = 1e-6  # keeps a candidate list complete for float32 points just outside their cell


def icosphere(frequency: int) -> Points:
    """The 10f²+2 vertices of the geodesic icosahedron of frequency f, on the unit sphere.

    Edges of the icosahedron are divided into f equal arcs' chords and pushed out. Oriented with
    2-fold axes along x, y and z: the set is unchanged by flips of each axis and by cyclic
    permutations of the axes. The axes themselves belong to the set when f is even.

    Shape: → [10f²+2, 3].

    Raises:
        ConfigError: frequency below 1.
    """
    if frequency < 1:
        raise ConfigError(f"icosphere of frequency {frequency}: expected at least 1")
    golden = (1 + sqrt(5)) / 2
    base = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    vertices = np.array([np.roll(v, shift) for shift in range(3) for v in base])
    distances = np.linalg.norm(vertices[:, None] - vertices[None], axis=-1)
    bonded = np.isclose(distances, 2.0)
    faces = [
        (i, j, k)
        for i in range(12)
        for j in range(i + 1, 12)
        for k in range(j + 1, 12)
        if bonded[i, j] and bonded[j, k] and bonded[i, k]
    ]
    steps = np.array(
        [(a, b, frequency - a - b) for a in range(frequency + 1) for b in range(frequency + 1 - a)]
    )
    points = np.concatenate([steps @ vertices[list(face)] for face in faces]) / frequency
    return _unique_directions(points)


def fibonacci(n: int) -> Points:
    """n directions on a golden-angle spiral: z_k = 1 − (2k+1)/n, φ_k = 2πk/golden².

    Nearly even for every n, without any symmetry. Shape: → [n, 3].

    Raises:
        ConfigError: fewer than 2 points.
    """
    if n < 2:
        raise ConfigError(f"Fibonacci sphere of {n} points: expected at least 2")
    k = np.arange(n)
    z = 1 - (2 * k + 1) / n
    angle = np.pi * (3 - sqrt(5)) * k
    radius = np.sqrt(1 - z * z)
    return np.stack((radius * np.cos(angle), radius * np.sin(angle), z), -1)


def flip_symmetric(frequency: int) -> Points:
    """An icosphere that contains the six axes; for odd f they are added to it.

    Closed under every axis flip and containing the axes, so that a direction with vanishing
    components has codewords with the same vanishing components: what exact equivariance in local
    frames needs. Shape: → [10f²+2 or 10f²+8, 3].
    """
    points = icosphere(frequency)
    if frequency % 2 == 0:
        return points
    axes = np.concatenate((np.eye(3), -np.eye(3)))
    return _unique_directions(np.concatenate((points, axes)))


# One point of each orbit under flips and cyclic permutations of the axes; found by minimising first
# the mean, then the sixth power of the angular error over random starts.
_INTERIOR_254 = (
    (0.839117, 0.462071, 0.287006),
    (0.326729, 0.169712, 0.929756),
    (0.618233, 0.129110, 0.775318),
    (0.239760, 0.964958, 0.106636),
    (0.408636, 0.880361, 0.240793),
    (0.499926, 0.754587, 0.425056),
    (0.625127, 0.365260, 0.689784),
    (0.774324, 0.207291, 0.597873),
)
_IN_PLANE_254 = (62.543672, 27.541279, 49.725689, 11.589447)  # degrees from y towards z, x = 0


def even_254() -> Points:
    """254 directions with the axes among them, for eight bits.

    The icosphere of 252 points lacks the axes and has no codes to spare for them. This set has the
    same symmetry under flips and cyclic permutations of the axes, contains them, and has smaller
    errors (4.82° mean, 8.5° greatest, against 4.86° and 8.6°). Shape: → [254, 3].
    """
    angles = np.radians(_IN_PLANE_254)
    in_plane = np.stack((np.zeros_like(angles), np.cos(angles), np.sin(angles)), -1)
    octant = [np.roll(part, k, -1) for part in (_INTERIOR_254, in_plane) for k in range(3)]
    octant += [np.eye(3), np.full((1, 3), 3**-0.5)]
    signs = np.stack(np.meshgrid(*([[1.0, -1.0]] * 3)), -1).reshape(8, 1, 3)
    return _unique_directions((signs * np.concatenate(octant)).reshape(-1, 3))


def codebook_points(bits: int) -> Points:
    """The largest flip-symmetric set whose index fits: ``even_254`` for 8 bits, else an icosphere.

    Raises:
        ConfigError: fewer than 5 or more than 16 bits.
    """
    if not 5 <= bits <= 16:
        raise ConfigError(f"a codebook of {bits} bits: expected 5 to 16")
    if bits == 8:
        return even_254()
    frequency = int(sqrt((2**bits - 2) / 10))
    while (points := flip_symmetric(frequency)).shape[0] > 2**bits:
        frequency -= 1
    return points


@dataclass(frozen=True)
class AngularError:
    """Angles between random directions and their nearest codewords, in degrees."""

    mean: float
    rms: float
    max: float


def angular_error(points: Points, n_samples: int = 100_000, seed: int = 0) -> AngularError:
    """Angular error of a point set over directions drawn evenly from the sphere."""
    samples = np.random.default_rng(seed).normal(size=(n_samples, 3))
    samples /= np.linalg.norm(samples, axis=-1, keepdims=True)
    angles = np.empty(n_samples)
    for start in range(0, n_samples, 4096):
        chunk = samples[start : start + 4096]
        angles[start : start + 4096] = np.arccos(np.clip((chunk @ points.T).max(1), -1, 1))
    degrees = np.degrees(angles)
    rms = np.sqrt((degrees**2).mean())
    return AngularError(float(degrees.mean()), float(rms), float(degrees.max()))


class Codebook(nn.Module):
    """Nearest codeword of a flip-symmetric point set, exactly, in a fixed number of operations.

    A direction is folded into the positive octant; by symmetry its nearest codeword lies there too.
    Its octahedral coordinates p = |u|/‖u‖₁ name a cell, and the cell names the few codewords that are
    nearest to some point of it. The lists are complete: q is left out only if another codeword q'
    has (q' − q)·p > 0 at every corner p of the cell, hence, being linear in p, all over the cell.

    Components that are exactly zero stay zero: such directions have cells of their own (three arcs,
    three axes) that list only codewords with the same zeros. The map is therefore odd under each
    axis flip, without exceptions on the planes of symmetry.

    Attributes:
        points: Shape: [n, 3].
    """

    points: Tensor
    octant: Tensor
    candidates: Tensor
    indices: Tensor

    def __init__(self, table: OctantTable) -> None:
        super().__init__()
        self.cells, self.arcs = table.cells, table.arcs
        for name, array, dtype in (
            ("points", table.points, torch.float64),
            ("octant", table.octant, torch.float64),
            ("candidates", table.candidates, torch.int64),
            ("indices", table.indices, torch.int64),
        ):
            self.register_buffer(name, torch.as_tensor(array, dtype=dtype), persistent=False)

    @classmethod
    def from_points(cls, points: Points) -> Codebook:
        """A codebook of any flip-symmetric set that contains the six axes.

        Raises:
            ConfigError: the set lacks an axis or one of the mirror images.
        """
        return cls(octant_table(points))

    @classmethod
    def from_bits(cls, bits: int) -> Codebook:
        """The codebook of ``codebook_points(bits)``; its table is built once per process."""
        return cls(_table_of_bits(bits))

    def forward(self, directions: Tensor) -> Tensor:
        """Index of the nearest codeword; 0 for the zero vector. Shape: [..., 3] → [...]."""
        octant, signs = self._nearest_in_octant(directions.abs())[0], directions < 0
        flips = (signs * torch.tensor([1, 2, 4], device=signs.device)).sum(-1)
        return self.indices[octant, flips]

    def nearest(self, directions: Tensor) -> Tensor:
        """The nearest codeword itself, in the dtype of the input. Shape: [..., 3] → [..., 3].

        Depends on the direction only; needs no unit length.
        """
        _, codewords = self._nearest_in_octant(directions.abs())
        return torch.where(directions < 0, -codewords, codewords)

    def _nearest_in_octant(self, folded: Tensor) -> tuple[Tensor, Tensor]:
        total = folded.sum(-1, keepdim=True)
        p = folded / torch.where(total > 0, total, 1.0)
        px, py, pz = p.unbind(-1)
        n, m = self.cells, self.arcs
        cell = _floor(px, n) * n + _floor(py, n)
        first_arc, first_axis = n * n, n * n + 3 * m
        for axis, along in enumerate((py, pz, px)):
            cell = torch.where(p[..., axis] == 0, first_arc + axis * m + _floor(along, m), cell)
        for axis, others in enumerate(((py, pz), (pz, px), (px, py))):
            alone = (others[0] == 0) & (others[1] == 0)
            cell = torch.where(alone, first_axis + axis, cell)
        candidates = self.candidates[cell]
        codewords = self.octant.to(folded.dtype)[candidates]
        best = (codewords * p.unsqueeze(-2)).sum(-1).argmax(-1, keepdim=True)
        chosen = candidates.gather(-1, best).squeeze(-1)
        return chosen, self.octant.to(folded.dtype)[chosen]


def _floor(p: Tensor, n: int) -> Tensor:
    return (p * n).long().clamp(0, n - 1)


def _unique_directions(points: Points) -> Points:
    """Normalised, without repetitions, zeros exact, in ascending order of (x, y, z)."""
    points = points / np.linalg.norm(points, axis=-1, keepdims=True)
    points[np.abs(points) < 1e-12] = 0.0
    _, first = np.unique(points.round(9), axis=0, return_index=True)
    # One spelling of each |component|, so that mirror images are so to the last bit.
    values, inverse = np.unique(np.abs(points[first]).round(12), return_inverse=True)
    exact = np.zeros_like(values)
    np.maximum.at(exact, inverse.ravel(), np.abs(points[first]).ravel())
    return np.copysign(exact[inverse].reshape(-1, 3), points[first]) + 0.0


@dataclass(frozen=True)
class OctantTable:
    """Codewords of the positive octant and the candidates of each cell (see ``Codebook``)."""

    points: Points
    octant: Points
    candidates: NDArray[np.int64]
    indices: NDArray[np.int64]
    cells: int
    arcs: int


@lru_cache(maxsize=8)
def _table_of_bits(bits: int) -> OctantTable:
    return octant_table(codebook_points(bits))


def octant_table(points: Points) -> OctantTable:
    """Build the look-up of a codebook; raises ConfigError as ``Codebook.from_points`` does."""
    octant = points[(points >= 0).all(-1)]
    position = {tuple(p): i for i, p in enumerate((points + 0.0).tolist())}
    indices = np.empty((len(octant), 8), np.int64)
    for flips in range(8):
        signs = np.where([flips & 1, flips & 2, flips & 4], -1.0, 1.0)
        for row, q in enumerate((octant * signs + 0.0).tolist()):
            if tuple(q) not in position:
                raise ConfigError("a codebook must be unchanged by every flip of an axis")
            indices[row, flips] = position[tuple(q)]
    if any(not (octant[:, axis] == 1).any() for axis in range(3)):
        raise ConfigError("a codebook must contain the six axes")

    cells = _BLOCK * ceil(1.5 * sqrt(len(octant)) / _BLOCK)
    arcs = 4 * cells
    everyone = np.arange(len(octant))
    blocks = {
        (i, j): _undominated(_square(i, j, cells // _BLOCK), octant, everyone)
        for i in range(cells // _BLOCK)
        for j in range(cells // _BLOCK - i)
    }
    lists: list[NDArray[np.int64]] = []
    for i in range(cells):
        for j in range(cells):
            # Rounding can lead just across the edge i + j = cells, to a corner of the cell before.
            row = min(i, max(cells - 1 - j, 0))
            among = blocks[row // _BLOCK, j // _BLOCK]
            lists.append(_undominated(_square(row, j, cells), octant, among))
    for axis in range(3):
        on_arc = np.flatnonzero(octant[:, axis] == 0)
        for k in range(arcs):
            ends = np.zeros((2, 3))
            ends[:, (axis + 1) % 3] = np.array([k, k + 1]) / arcs
            ends[:, (axis + 2) % 3] = 1 - ends[:, (axis + 1) % 3]
            lists.append(_undominated(ends, octant, on_arc))
    for axis in range(3):
        lists.append(np.flatnonzero(octant[:, axis] == 1))
    width = max(map(len, lists))
    candidates = np.stack([np.pad(c, (0, width - len(c)), mode="edge") for c in lists])
    return OctantTable(points, octant, candidates, indices, cells, arcs)


def _square(i: int, j: int, cells: int) -> Points:
    """Corners (p_x, p_y, 1 − p_x − p_y) of a cell, cut to the triangle p_z ≥ 0."""
    corners = [(i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)][: 4 if i + j + 1 < cells else 3]
    xy = np.array(corners) / cells
    return np.column_stack((xy, 1 - xy.sum(1)))


def _undominated(corners: Points, octant: Points, among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codewords that no single other one beats at all corners of a cell."""
    scores = octant[among] @ corners.T
    best_worst = scores.min(1).max()  # this much some codeword reaches all over the cell
    alive = scores.max(1) > best_worst - _MARGIN
    among, scores = among[alive], scores[alive]
    beaten = (scores[None] > scores[:, None] + _MARGIN).all(-1).any(1)
    return among[~beaten]
