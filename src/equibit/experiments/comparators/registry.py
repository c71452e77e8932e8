"""Which comparators there are, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from equibit.experiments.comparators.networks import ForeignNetwork
from equibit.experiments.comparators.packages import (
    DimeNetPlusPlus,
    Mace,
    NequIP,
    PaiNN,
    SchNet,
)
from equibit.structures.errors import ConfigError, ModelError

Build = Callable[..., ForeignNetwork]


@dataclass(frozen=True)
class Comparator:
    """A network of another package.

    Attributes:
        name: in tables and commands.
        package: what is installed.
        module: what a user imports, and what is timed.
        build: from elements and the mean number of neighbours, with options of its own.
        learning_rate: peak rate, near what its package's examples take.
        small: options that make it small, for a smoke run.
    """

    name: str
    package: str
    module: str
    build: Build
    learning_rate: float
    small: Mapping[str, Any]

    def make(
        self, elements: Sequence[int], neighbors: float, *, quick: bool = False
    ) -> ForeignNetwork:
        """The network with random weights.

        Raises:
            ModelError: its package is not installed.
        """
        return self.build(elements, neighbors, **(self.small if quick else {}))

    def missing(self) -> str | None:
        """Why it cannot be used here, or None."""
        try:
            self.make((1, 6), 2.0, quick=True)
        except ModelError as error:
            return str(error)
        return None


COMPARATORS = {
    comparator.name: comparator
    for comparator in (
        Comparator(
            "schnet", "torch-geometric", "torch_geometric.nn", SchNet, 1e-3, {"width": 16}
        ),
        Comparator(
            "dimenet++", "torch-geometric", "torch_geometric.nn", DimeNetPlusPlus, 1e-3,
            {"width": 16, "spherical": 2},
        ),
        Comparator("painn", "schnetpack", "schnetpack", PaiNN, 1e-3, {"width": 16}),
        Comparator(
            "nequip", "nequip", "nequip.model", NequIP, 5e-3,
            {"width": 8, "layers": 2, "degree": 1},
        ),
        Comparator("mace", "mace-torch", "mace.modules", Mace, 1e-2, {"irreps": "8x0e+8x1o"}),
    )
}  # fmt: skip


def find_comparator(name: str) -> Comparator:
    """A comparator by name.

    Raises:
        ConfigError: no such name; the message offers the closest.
    """
    if name not in COMPARATORS:
        close = get_close_matches(name, COMPARATORS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"no comparator {name!r}: {hint}known are {', '.join(COMPARATORS)}")
    return COMPARATORS[name]
