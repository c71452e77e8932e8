"""Experiments by name: where each lives and what it shows. Imports nothing heavy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from equibit.structures.errors import ConfigError

if TYPE_CHECKING:
    from equibit.experiments.experiment import Experiment


@dataclass(frozen=True)
class Entry:
    """Attributes:
    place: ``module:class`` of the experiment.
    summary: what it shows, in a line.
    """

    place: str
    summary: str


EXPERIMENTS = {
    "ethanol": Entry(
        "equibit.experiments.ethanol:Ethanol",
        "FP32, control and low-bit networks on ethanol, over seeds.",
    ),
    "quantisers": Entry(
        "equibit.experiments.quantisers:Quantisers",
        "The papers' quantisers, those they compare with and ours: errors, symmetry, size, time.",
    ),
    "ablations": Entry(
        "equibit.experiments.ablations:Ablations",
        "What each part is worth: branches, codecs, frames, bits, scales, attention, LEE loss.",
    ),
    "table2": Entry(
        "equibit.experiments.molecules:TableTwo",
        "Table II: seven molecules on MD17 labels, FP32 and W4A8.",
    ),
    "rmd17": Entry(
        "equibit.experiments.molecules:Rmd17",
        "Ten molecules of rMD17, split 1, FP32, W8A8 and W4A8.",
    ),
    "qm9": Entry(
        "equibit.experiments.qm9:Qm9",
        "QM9: energies of molecules at rest, FP32, W8A8 and W4A8.",
    ),
    "transfer": Entry(
        "equibit.experiments.transfer:Transfer",
        "From QM9 to forces of rMD17 aspirin, beside the same training from scratch.",
    ),
    "dynamics": Entry(
        "equibit.experiments.dynamics:Dynamics",
        "Drift over a nanosecond, stability at 500 K, force errors of turned structures.",
    ),
    "cost": Entry(
        "equibit.experiments.cost:Cost",
        "Time against atoms, neighbours, channels, degree and bits; bars of ethanol.",
    ),
    "nequip": Entry(
        "equibit.experiments.nequip:Nequip",
        "NequIP of its package, trained here, after post-training quantisation.",
    ),
    "comparators": Entry(
        "equibit.experiments.comparators.experiment:Comparators",
        "SchNet, DimeNet++, PaiNN, NequIP, MACE and GFN2-xTB beside our engine.",
    ),
}


def find_experiment(name: str) -> type[Experiment[Any]]:
    """The class of an experiment.

    Raises:
        ConfigError: no experiment of that name; the message offers the closest.
    """
    if name not in EXPERIMENTS:
        close = get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"no experiment {name!r}: {hint}known are {', '.join(EXPERIMENTS)}")
    module, _, attribute = EXPERIMENTS[name].place.partition(":")
    found: type[Experiment[Any]] = getattr(importlib.import_module(module), attribute)
    return found
