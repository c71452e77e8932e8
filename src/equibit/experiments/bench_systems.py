"""Systems to time: two molecules, and water of any size."""

from __future__ import annotations

import numpy as np

from equibit.structures.structure import FloatArray, Structure

_WATER_DENSITY = 0.0334  # molecules per Å³, at 298 K
_WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])

ETHANOL = Structure(
    np.array([6, 6, 8, 1, 1, 1, 1, 1, 1]),
    np.array(
        [
            [-0.748, -0.015, 0.024],
            [0.558, 0.420, -0.278],
            [1.293, -0.202, -0.901],
            [-0.988, -0.850, -0.637],
            [-1.316, 0.870, -0.227],
            [-0.814, -0.312, 1.079],
            [0.496, 1.352, -0.851],
            [1.117, 0.608, 0.649],
            [1.950, 0.441, -1.086],
        ]
    ),
)

# Relaxed with GFN2-xTB.
ASPIRIN = Structure(
    np.array([8] * 4 + [6] * 9 + [1] * 8),
    np.array(
        [
            [-1.074, -1.789, -0.358],
            [-1.704, 0.362, 1.456],
            [0.817, -2.704, 0.373],
            [-1.131, 0.886, -0.655],
            [2.224, -0.388, 0.169],
            [0.954, 1.989, -0.494],
            [2.952, 0.782, 0.070],
            [2.318, 1.968, -0.270],
            [-3.394, 0.438, -0.270],
            [0.850, -0.394, -0.074],
            [0.218, 0.817, -0.391],
            [0.082, -1.659, -0.034],
            [-2.014, 0.523, 0.309],
            [0.262, -3.500, 0.384],
            [2.708, -1.313, 0.443],
            [0.441, 2.908, -0.740],
            [4.015, 0.774, 0.261],
            [2.884, 2.885, -0.341],
            [-3.643, -0.615, -0.389],
            [-4.114, 0.893, 0.406],
            [-3.411, 0.913, -1.245],
        ]
    ),
)


def water(molecules: int, seed: int = 0) -> Structure:
    """A periodic cube of water at its density: molecules turned at random, near a lattice.

    Neighbours are as many as in the liquid, which is all that timing asks for.
    """
    generator = np.random.default_rng(seed)
    length = (molecules / _WATER_DENSITY) ** (1 / 3)
    side = int(np.ceil(molecules ** (1 / 3) - 1e-9))
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sites = sites[np.linspace(0, len(sites) - 1, molecules).round().astype(int)]
    centres = (sites + 0.5 + 0.05 * generator.uniform(-1, 1, sites.shape)) * length / side
    positions = centres[:, None] + np.einsum(
        "nij,kj->nki", _random_rotations(molecules, generator), _WATER
    )
    return Structure(
        np.tile(np.array([8, 1, 1]), molecules),
        positions.reshape(-1, 3),
        cell=length * np.eye(3),
        pbc=np.ones(3, bool),
    )


def _random_rotations(count: int, generator: np.random.Generator) -> FloatArray:
    """From uniformly distributed unit quaternions. Shape: → [count, 3, 3]."""
    q = generator.standard_normal((count, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.asarray(np.moveaxis(np.array(rows), -1, 0), dtype=np.float64)
