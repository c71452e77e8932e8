"""Deterministic splits that keep copies of a structure on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equibit.structures import DatasetError, Structure
from equibit.structures.structure import IntArray

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class SplitSizes:
    """How much goes where: a whole number counts structures, a float up to 1.0 is a fraction of all of them.

    Attributes:
        train: training structures.
        validation: structures that choose hyper-parameters and the stopping point.
        test: structures that only the final figures see; None for all that are left.
    """

    train: int | float = 0.8
    validation: int | float = 0.1
    test: int | float | None = None

    def counts(self, n_structures: int) -> dict[str, int]:
        """Number of structures of each split.

        Raises:
            DatasetError: a size that is negative or no number of structures, an empty training
                set, or more structures asked for than there are.
        """
        sizes = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}
        counts = {
            name: _count(name, size, n_structures)
            for name, size in sizes.items()
            if size is not None
        }
        left = n_structures - sum(counts.values())
        if left < 0:
            wanted = " + ".join(f"{count} {name}" for name, count in counts.items())
            raise DatasetError(f"{wanted} structures are wanted, but there are {n_structures}")
        if counts[TRAIN] == 0:
            raise DatasetError(
                f"no structures are left to train on: {n_structures} in all, {sizes} wanted"
            )
        return {**counts, TEST: counts.get(TEST, left)}


def random_split(
    n_structures: int,
    counts: Mapping[str, int],
    *,
    seed: int,
    groups: npt.ArrayLike | None = None,
) -> dict[str, IntArray]:
    """Random disjoint index arrays, the same on every machine and with every NumPy version.

    Structures are ordered by a hash of (seed, group) and dealt to the splits in the order of
    ``counts``; a group that straddles the end of a split stays whole in it, so with groups a split
    may exceed its count by less than one group.

    Args:
        n_structures: how many there are.
        counts: wanted size of each split, in order.
        seed: any integer.
        groups: structures with the same number stay together. Shape: [n_structures].

    Raises:
        DatasetError: the counts exceed the number of structures.
    """
    if sum(counts.values()) > n_structures:
        raise DatasetError(
            f"{sum(counts.values())} structures are wanted, but there are {n_structures}"
        )
    labels = np.arange(n_structures) if groups is None else np.asarray(groups)
    order = _hashed_order(labels, seed)
    ordered_labels = labels[order]
    # where a new group begins: the only places a split may end
    starts = np.flatnonzero(np.r_[True, ordered_labels[1:] != ordered_labels[:-1], True])
    splits, begin = {}, 0
    for name, count in counts.items():
        wanted = min(begin + count, n_structures)
        end = max(begin, int(starts[np.searchsorted(starts, wanted)])) if count else begin
        splits[name] = order[begin:end]
        begin = end
    return splits


def duplicate_groups(structures: Sequence[Structure]) -> IntArray:
    """A number for each structure, equal for exact copies: same elements, positions, cell and pbc.

    The number is the index of the first copy. Shape: [n_structures].
    """
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(fingerprint(s), k) for k, s in enumerate(structures)], dtype=np.int64
    )


def fingerprint(structure: Structure) -> bytes:
    """SHA-256 of the geometry, whatever the labels; −0.0 counts as 0.0."""
    digest = hashlib.sha256(structure.numbers.tobytes())
    digest.update((structure.positions + 0.0).tobytes())
    if structure.periodic and structure.cell is not None:
        digest.update(structure.pbc.tobytes())
        digest.update((structure.cell + 0.0).tobytes())
    return digest.digest()


def split_structures(
    structures: Sequence[Structure], sizes: SplitSizes, *, seed: int
) -> dict[str, IntArray]:
    """A random split of a set, exact copies kept on one side.

    Raises:
        DatasetError: the sizes do not fit the set.
    """
    groups = duplicate_groups(structures)
    return random_split(len(structures), sizes.counts(len(structures)), seed=seed, groups=groups)


def hold_out(indices: IntArray, count: int, *, seed: int) -> tuple[IntArray, IntArray]:
    """Split ``count`` validation structures off a training set.

    Returns:
        The remaining training indices in their given order, and the validation indices.

    Raises:
        DatasetError: nothing would be left to train on.
    """
    if not 0 <= count < indices.size:
        raise DatasetError(
            f"{count} validation structures cannot be taken from {indices.size} training structures"
        )
    chosen = _hashed_order(np.arange(indices.size), seed)[:count]
    rest = np.delete(indices, chosen)
    return rest, indices[chosen]


def _hashed_order(labels: npt.NDArray[np.integer], seed: int) -> IntArray:
    """Positions sorted by a hash of seed and label; copies of a label stay adjacent and in order."""
    unique, inverse = np.unique(labels, return_inverse=True)
    keys = np.array(
        [
            int.from_bytes(hashlib.blake2b(f"{seed}:{label}".encode(), digest_size=8).digest())
            for label in unique.tolist()
        ],
        dtype=np.uint64,
    )
    return np.lexsort((np.arange(labels.size), labels, keys[inverse])).astype(np.int64)


def _count(name: str, size: int | float, n_structures: int) -> int:
    count = round(size * n_structures) if isinstance(size, float) and size <= 1 else size
    if not count >= 0 or count % 1:
        raise DatasetError(
            f"the {name} size is {size}; expected a whole number of structures or a fraction "
            "up to 1.0"
        )
    return int(count)
