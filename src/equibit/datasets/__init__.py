"""Data sets: by name, from files, split and inspected."""

from equibit.datasets.dataset import Dataset, load_dataset
from equibit.datasets.splits import SplitSizes, random_split, split_structures

__all__ = ["Dataset", "SplitSizes", "load_dataset", "random_split", "split_structures"]
