"""Splits: deterministic, disjoint, and copies on one side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equibit.datasets.splits import (
    SplitSizes,
    duplicate_groups,
    hold_out,
    random_split,
    split_structures,
)
from equibit.structures import DatasetError, Structure


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
    st.integers(-5, 5),
)
def test_groups_stay_whole_and_splits_disjoint(
    groups: list[int], counts: tuple[int, int], seed: int
) -> None:
    n = len(groups)
    wanted = {"train": min(counts[0], n), "test": min(counts[1], n - min(counts[0], n))}
    splits = random_split(n, wanted, seed=seed, groups=groups)
    indices = np.concatenate(list(splits.values()))
    assert len(set(indices.tolist())) == indices.size
    owners = {name: {groups[k] for k in split} for name, split in splits.items()}
    assert not owners["train"] & owners["test"]


@given(st.integers(1, 60), st.integers(0, 3))
def test_without_copies_the_counts_are_exact(n: int, seed: int) -> None:
    counts = {"train": n // 2, "validation": n // 4, "test": n - n // 2 - n // 4}
    splits = random_split(n, counts, seed=seed)
    assert {name: split.size for name, split in splits.items()} == counts
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(n))


PINNED = [3, 7, 9, 8, 5, 4, 2, 6, 0, 1]


def test_the_split_is_the_same_forever() -> None:
    splits = random_split(10, {"train": 6, "test": 4}, seed=0)
    assert splits["train"].tolist() == PINNED[:6]
    assert splits["test"].tolist() == PINNED[6:]


def test_seeds_differ() -> None:
    one, other = (random_split(50, {"train": 25}, seed=s)["train"].tolist() for s in (0, 1))
    assert one != other


def test_copies_are_found_whatever_their_labels() -> None:
    cell = 5 * np.eye(3)
    structures = [
        Structure([1], [[0.0, 0, 0]], energy=1.0),
        Structure([1], [[-0.0, 0, 0]], energy=2.0),
        Structure([2], [[0, 0, 0]]),
        Structure([1], [[0, 0, 0]], cell=cell),
        Structure([1], [[0, 0, 0]], cell=cell, pbc=True),
        Structure([1], [[0, 0, 1e-12]]),
    ]
    assert duplicate_groups(structures).tolist() == [0, 0, 2, 0, 4, 5]


def test_copies_never_straddle() -> None:
    structures = [Structure([1], [[k // 3, 0, 0]]) for k in range(60)]
    for seed in range(10):
        splits = split_structures(structures, SplitSizes(0.5, 0.2), seed=seed)
        owners = [set((split // 3).tolist()) for split in splits.values()]
        assert not (owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2])


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        (SplitSizes(), 100, (80, 10, 10)),
        (SplitSizes(), 1, (1, 0, 0)),
        (SplitSizes(950, 50, 1000), 5000, (950, 50, 1000)),
        (SplitSizes(0.5, 10), 100, (50, 10, 40)),
        (SplitSizes(1.0, 0, 0), 7, (7, 0, 0)),
        (SplitSizes(1, 0, 0), 7, (1, 0, 0)),
    ],
)
def test_sizes(sizes: SplitSizes, n: int, expected: tuple[int, int, int]) -> None:
    assert tuple(sizes.counts(n).values()) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SplitSizes(90, 20), "90 train .* are wanted, but there are 100"),
        (SplitSizes(-1), "the train size is -1"),
        (SplitSizes(1.5), "the train size is 1.5"),
        (SplitSizes(float("nan")), "the train size is nan"),
        (SplitSizes(0), "no structures are left to train on"),
    ],
)
def test_impossible_sizes(sizes: SplitSizes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        sizes.counts(100)


def test_hold_out_keeps_the_order() -> None:
    indices = np.arange(100)[::-1]
    rest, held = hold_out(indices, 10, seed=0)
    assert sorted([*rest, *held]) == list(range(100))
    assert (np.diff(rest) < 0).all()
    with pytest.raises(DatasetError, match="100 validation structures"):
        hold_out(indices, 100, seed=0)
