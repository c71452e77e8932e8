"""The versions of each kind of file, and the functions that bring old files up to date.

A version counts the meaning of a file's header and tensors. Whoever changes that meaning raises the
number here, adds a function from the old version, and keeps an old file under
``tests/storage/data`` so that the upgrade stays tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Header = dict[str, Any]
Tensors = dict[str, npt.NDArray[np.generic]]
Upgrade = Callable[[Header, Tensors], tuple[Header, Tensors]]

CURRENT_VERSIONS: dict[str, int] = {"model": 2, "checkpoint": 1, "dataset": 1, "dynamics": 1}

# {kind: {old version: function to the next version}}
UPGRADES: dict[str, dict[int, Upgrade]] = {
    # Version 2 added keys of the recipe (``message_bits`` and others) and offsets of weights, whose
    # absence means what version 1 did.
    "model": {1: lambda header, tensors: (header, tensors)},
    "checkpoint": {},
    "dataset": {},
    "dynamics": {},
}
