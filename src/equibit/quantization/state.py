"""A quantised network as arrays and a manifest, with its codes really packed, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibit.networks.base import AtomisticNetwork
from equibit.networks.linear import EquivariantLinear
from equibit.quantization.convert import QuantizedLayer, quantize_, quantized_layers
from equibit.quantization.packing import (
    PackedSteps,
    pack_codes,
    pack_steps,
    unpack_codes,
    unpack_steps,
)
from equibit.quantization.recipes import Recipe
from equibit.structures.errors import FileFormatError, ModelError

Arrays = dict[str, NDArray[Any]]
Manifest = dict[str, Any]

_OWN = ("weight", "codes", "steps", "offsets")


def export_state(network: AtomisticNetwork) -> tuple[Arrays, Manifest]:
    """Everything a quantised network needs, nothing twice.

    Each quantised weight becomes ``NAME.codes`` (packed), ``NAME.steps`` and, where its numbers are
    step · (code + offset), ``NAME.offsets``, described in the manifest; all other parameters and
    persistent buffers keep their names, in float16 where that loses nothing. Species centres become
    bytes times a power of two, without loss either.

    Returns:
        Arrays by name, and ``{"recipe": …, "layers": {name: …}}`` of JSON values.

    Raises:
        ModelError: the network is not quantised.
    """
    layers = quantized_layers(network)
    if not layers:
        raise ModelError("the network is not quantised: call quantize_ first")
    tensors: Arrays = {}
    manifest: Manifest = {"recipe": network.recipe.model_dump(mode="json"), "layers": {}}
    manifest["center_exponents"] = {}
    skip: set[str] = set()
    for name, layer in layers.items():
        codes, steps, offsets = _stored_weight(layer)
        packed = pack_steps(steps.float().cpu().numpy())
        tensors[f"{name}.codes"] = pack_codes(codes.cpu().numpy(), layer.spec.bits)
        tensors[f"{name}.steps"] = packed.values
        manifest["layers"][name] = {
            "shape": list(codes.shape),
            "bits": layer.spec.bits,
            "granularity": layer.spec.granularity,
            "group_size": layer.spec.group_size,
            "step_format": packed.format,
            "first_step": packed.first,
        }
        if isinstance(layer, EquivariantLinear):
            manifest["layers"][name]["degree"] = layer.degree
        elif (quantizer := getattr(layer, "input_quantizer", None)) is None:
            manifest["layers"][name]["weight_only"] = True
        else:
            manifest["layers"][name]["input_bits"] = quantizer.spec.bits
        if offsets is not None:
            tensors[f"{name}.offsets"] = _narrowest(offsets.float().cpu().numpy())
            manifest["layers"][name]["offsets"] = True
        skip.update(f"{name}.{own}" for own in _OWN)
        if layer.weight_quantizer is not None:
            skip.update(f"{name}.weight_quantizer.{k}" for k in layer.weight_quantizer.state_dict())
    for name, value in network.state_dict().items():
        if name not in skip:
            array = value.detach().cpu().numpy()
            if name.endswith(".centers"):
                array, manifest["center_exponents"][name] = _bytes_and_exponent(array)
            tensors[name] = _narrowest(array)
    return tensors, manifest


def import_state(
    network: AtomisticNetwork, tensors: Mapping[str, NDArray[Any]], manifest: Manifest
) -> AtomisticNetwork:
    """Turn a freshly built float network into the saved quantised one, in place.

    Outputs equal those of the network that was exported, bit for bit, on the same machine.

    Args:
        network: of the same configuration.
        tensors, manifest: what ``export_state`` returned.

    Raises:
        FileFormatError: a tensor is missing, superfluous or of the wrong size.
        ConfigError: the recipe names a quantiser that is not registered: import its module first.
    """
    quantize_(network, Recipe.from_mapping(manifest["recipe"]))
    remaining = dict(tensors)
    layers = quantized_layers(network)
    if set(layers) != set(manifest["layers"]):
        odd = sorted(set(layers) ^ set(manifest["layers"]))
        raise FileFormatError(f"quantised layers of file and network differ: {', '.join(odd)}")
    for name, layer in layers.items():
        entry = manifest["layers"][name]
        shape = tuple(entry["shape"])
        if shape != tuple(layer.weight.shape):
            raise FileFormatError(
                f"{name}: the file holds a weight of shape {shape}, the network needs "
                f"{tuple(layer.weight.shape)}"
            )
        codes = unpack_codes(_take(remaining, f"{name}.codes"), entry["bits"], shape)
        values = _take(remaining, f"{name}.steps")
        steps = unpack_steps(PackedSteps(values, entry["step_format"], entry["first_step"]))
        offsets = None
        if entry.get("offsets"):
            offsets = torch.from_numpy(_take(remaining, f"{name}.offsets").astype(np.float32))
        layer.set_codes(torch.from_numpy(codes), torch.from_numpy(steps), offsets)
    own = {f"{name}.{buffer}" for name in layers for buffer in _OWN}
    exponents = manifest["center_exponents"]
    for name, target in network.state_dict(keep_vars=True).items():
        if name not in own:
            array = _take(remaining, name)
            if name in exponents:
                array = array * np.float32(2.0 ** exponents[name])
            _copy(name, array, target)
    if remaining:
        raise FileFormatError(f"the file holds unknown tensors: {', '.join(sorted(remaining))}")
    return network


def _stored_weight(layer: QuantizedLayer) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, steps and offsets."""
    if layer.codes is not None and layer.steps is not None:
        return layer.codes, layer.steps, layer.offsets
    assert layer.weight_quantizer is not None
    with torch.no_grad():
        codes, steps = layer.weight_quantizer.codes(layer.weight)
        return codes, steps, layer.weight_quantizer.offsets(layer.weight)


def _narrowest(array: NDArray[Any]) -> NDArray[Any]:
    """float16 where every number survives it. Shape: unchanged."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _bytes_and_exponent(centers: NDArray[Any]) -> tuple[NDArray[np.int8], int]:
    """c and e with centres = c · 2^e, as calibration leaves them. Shape: unchanged."""
    largest = float(np.abs(centers).max())
    exponent = 0 if largest == 0 else int(np.ceil(np.log2(largest / 127)))
    return np.rint(centers / 2.0**exponent).astype(np.int8), exponent


def _take(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in tensors:
        raise FileFormatError(f"the file lacks the tensor {name}: copy or export it again")
    return tensors.pop(name)


def _copy(name: str, array: NDArray[Any], target: Tensor) -> None:
    if array.shape != tuple(target.shape):
        raise FileFormatError(
            f"{name}: the file holds shape {array.shape}, the network needs {tuple(target.shape)}"
        )
    with torch.no_grad():
        target.copy_(torch.as_tensor(np.array(array)))
