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

CURRENT_VERSIONS: dict[str, int] = {"model": 3, "checkpoint": 1, "dataset": 1, "dynamics": 1}


def _model_to_3(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Exponents of centres belong to the layers; ``common`` says what layers share."""
    quantization = dict(header.get("quantization") or {})
    if not quantization:
        return header, tensors
    exponents = quantization.pop("center_exponents", {})
    layers = {name: dict(entry) for name, entry in quantization["layers"].items()}
    for name, exponent in exponents.items():
        layers[name.removesuffix(".input_quantizer.centers")]["center"] = exponent
    return header | {"quantization": quantization | {"common": {}, "layers": layers}}, tensors


# {kind: {old version: function to the next version}}
UPGRADES: dict[str, dict[int, Upgrade]] = {
    "model": {
        # Keys of the recipe (``message_bits`` and others) and offsets of weights came, whose absence
        # means what version 1 did.
        1: lambda header, tensors: (header, tensors),
        2: _model_to_3,
    },
    "checkpoint": {},
    "dataset": {},
    "dynamics": {},
}
