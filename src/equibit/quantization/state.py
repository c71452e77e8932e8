"""A quantised network as arrays and a manifest, with its codes really packed, and back."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equibit.networks.base import AtomisticNetwork
from equibit.networks.linear import EquivariantLinear
from equibit.quantization.convert import QuantizedLayer, quantize_, quantized_layers
from equibit.quantization.packing import (
    Entries,
    PackedSteps,
    code_bytes,
    pack_codes,
    pack_steps,
    shared_entries,
    steps_shape,
    unpack_codes,
    unpack_steps,
    whole_entries,
)
from equibit.quantization.recipes import Recipe
from equibit.structures.errors import FileFormatError, ModelError

Arrays = dict[str, NDArray[Any]]
Manifest = dict[str, Any]

_OWN = ("weight", "codes", "steps", "offsets")
_CENTERS = ".input_quantizer.centers"


def export_state(network: AtomisticNetwork) -> tuple[Arrays, Manifest]:
    """Everything a quantised network needs, nothing twice.

    Each quantised weight becomes ``NAME.codes`` (packed, its steps behind them where they are bytes,
    too), else ``NAME.steps`` and, where its numbers are step · (code + offset), ``NAME.offsets``, described in the manifest; all other parameters and
    persistent buffers keep their names, in float16 where that loses nothing. Species centres become
    bytes times a power of two, ``center``, without loss either; a layer that has the same as another
    names it (``centers_of``).

    Returns:
        Arrays by name, and ``{"recipe": …, "common": …, "layers": {name: …}}`` of JSON values: what
        ``common`` says holds for every layer that does not say otherwise.

    Raises:
        ModelError: the network is not quantised.
    """
    layers = quantized_layers(network)
    if not layers:
        raise ModelError("the network is not quantised: call quantize_ first")
    tensors: Arrays = {}
    entries: Entries = {}
    skip: set[str] = set()
    for name, layer in layers.items():
        codes, steps, offsets = _stored_weight(layer)
        packed = pack_steps(steps.float().cpu().numpy())
        tensors[f"{name}.codes"] = pack_codes(codes.cpu().numpy(), layer.spec.bits)
        if packed.format == "log2" and packed.values.shape == _steps_shape(layer):
            # One entry of the file's table less, which is as long as the steps themselves.
            both = (tensors[f"{name}.codes"], packed.values.ravel())
            tensors[f"{name}.codes"] = np.concatenate(both)
        else:
            tensors[f"{name}.steps"] = packed.values
        entries[name] = {
            "shape": list(codes.shape),
            "bits": layer.spec.bits,
            "granularity": layer.spec.granularity,
            "group_size": layer.spec.group_size,
            "step_format": packed.format,
            "first_step": packed.first,
        }
        if isinstance(layer, EquivariantLinear):
            entries[name]["degree"] = layer.degree
        elif (quantizer := getattr(layer, "input_quantizer", None)) is None:
            entries[name]["weight_only"] = True
        else:
            entries[name]["input_bits"] = quantizer.spec.bits
        if offsets is not None:
            tensors[f"{name}.offsets"] = _narrowest(offsets.float().cpu().numpy())
            entries[name]["offsets"] = True
        skip.update(f"{name}.{own}" for own in _OWN)
        if layer.weight_quantizer is not None:
            skip.update(f"{name}.weight_quantizer.{k}" for k in layer.weight_quantizer.state_dict())
    for name, value in network.state_dict().items():
        if name not in skip:
            array = value.detach().cpu().numpy()
            if name.endswith(_CENTERS):
                _store_centers(name.removesuffix(_CENTERS), array, tensors, entries)
            else:
                tensors[name] = _narrowest(array)
    common, own = shared_entries(entries)
    recipe = network.recipe.model_dump(mode="json")
    return tensors, {"recipe": recipe, "common": common, "layers": own}


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
    entries = whole_entries(manifest)
    if set(layers) != set(entries):
        odd = sorted(set(layers) ^ set(entries))
        raise FileFormatError(f"quantised layers of file and network differ: {', '.join(odd)}")
    for name, layer in layers.items():
        entry = entries[name]
        shape = tuple(entry["shape"])
        if shape != tuple(layer.weight.shape):
            raise FileFormatError(
                f"{name}: the file holds a weight of shape {shape}, the network needs "
                f"{tuple(layer.weight.shape)}"
            )
        stored = _take(remaining, f"{name}.codes")
        values = remaining.pop(f"{name}.steps", None)
        if values is None:
            length = code_bytes(shape, entry["bits"])
            stored, values = stored[:length], stored[length:]
            if values.size != prod(_steps_shape(layer)):
                raise FileFormatError(f"{name}.codes has no room for codes and steps")
            values = values.reshape(_steps_shape(layer))
        codes = unpack_codes(stored, entry["bits"], shape)
        steps = unpack_steps(PackedSteps(values, entry["step_format"], entry["first_step"]))
        offsets = None
        if entry.get("offsets"):
            offsets = torch.from_numpy(_take(remaining, f"{name}.offsets").astype(np.float32))
        layer.set_codes(torch.from_numpy(codes), torch.from_numpy(steps), offsets)
        if not torch.isfinite(layer.weight).all():
            raise FileFormatError(f"{name}.codes holds numbers that are not finite")
    own = {f"{name}.{buffer}" for name in layers for buffer in _OWN}
    for name, target in network.state_dict(keep_vars=True).items():
        if name not in own:
            if name.endswith(_CENTERS):
                array = _centers(name.removesuffix(_CENTERS), tensors, entries)
                remaining.pop(name, None)
            else:
                array = _take(remaining, name)
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


def _steps_shape(layer: QuantizedLayer) -> tuple[int, ...]:
    return steps_shape(tuple(layer.weight.shape), layer.spec.granularity, layer.spec.group_size)


def _narrowest(array: NDArray[Any]) -> NDArray[Any]:
    """float16 where every number survives it. Shape: unchanged."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _store_centers(layer: str, centers: NDArray[Any], tensors: Arrays, entries: Entries) -> None:
    """Species centres of a layer's inputs, unless another layer has the same."""
    values, exponent = _bytes_and_exponent(centers)
    for other, entry in entries.items():
        if entry.get("center") == exponent and np.array_equal(tensors[other + _CENTERS], values):
            entries[layer]["centers_of"] = other
            return
    entries[layer]["center"] = exponent
    tensors[layer + _CENTERS] = values


def _centers(layer: str, tensors: Mapping[str, NDArray[Any]], entries: Entries) -> NDArray[Any]:
    """Species centres of a layer's inputs. Shape: → [species, channels]."""
    owner = entries[layer].get("centers_of", layer)
    if owner + _CENTERS not in tensors or "center" not in entries.get(owner, {}):
        raise FileFormatError(f"the file lacks the centres of {layer}: copy or export it again")
    return tensors[owner + _CENTERS] * np.float32(2.0 ** entries[owner]["center"])


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
