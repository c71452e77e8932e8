"""From a model file to what the compiled engine reads. NumPy only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibit.engine.couplings import coupled_paths, coupling
from equibit.quantization.packing import PackedSteps, unpack_codes, unpack_steps
from equibit.quantization.recipes import Recipe
from equibit.storage.container import Container, read_container
from equibit.structures.errors import EquibitError, FileFormatError, ModelError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EngineModel:
    """A model as the engine takes it.

    Attributes:
        name: of the model.
        recipe: name of the quantisation recipe, or ``fp32``.
        elements: atomic numbers, ascending.
        config: sizes and switches of the network.
        arrays: float32 weights by the engine's names, float64 energy reference.
    """

    name: str
    recipe: str
    elements: tuple[int, ...]
    config: dict[str, Any]
    arrays: Arrays


def read_model(path: Path) -> EngineModel:
    """A checked model file in the engine's terms.

    Raises:
        ModelError: a network or recipe that the engine does not run.
        FileFormatError: damaged, foreign, newer or inconsistent file.
    """
    container = read_container(path, kind="model")
    try:
        return engine_model(container)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def engine_model(container: Container) -> EngineModel:
    """As ``read_model``, from a container that was read already."""
    header = container.header
    try:
        network = dict(header["network"])
        architecture = network["architecture"]
        if architecture != "equivariant_transformer":
            raise ModelError(
                f"the engine does not run the network {architecture!r} yet: compute with torch "
                "(equibit.load_potential)"
            )
        if network.get("axial_messages", False):
            raise ModelError(
                "the engine does not run axial messages yet: compute with torch "
                "(equibit.load_potential)"
            )
        channels = _channels(network["irreps"])
        elements = tuple(int(z) for z in network["elements"])
        config = {
            "elements": len(elements),
            "layers": int(network["layers"]),
            "heads": int(network["heads"]),
            "scalars": channels[0],
            "channels": channels[1] if len(channels) > 1 else 0,
            "max_degree": len(channels) - 1,
            "hidden": int(network["hidden"]) * channels[0],
            "splines": int(network["splines"]),
            "cutoff": float(network["cutoff"]),
            "softmax": network["attention"] == "softmax",
            "robust": bool(network["robust_attention"]),
        }
        name = str(header["name"])
        quantization = header.get("quantization")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise FileFormatError(f"its network description is not usable: {error!r}") from error
    try:
        source = _Source(container.tensors, quantization)
        arrays = _arrays(config, source)
    except KeyError as error:
        raise FileFormatError(f"{error.args[0]} is missing") from error
    except (IndexError, TypeError, ValueError) as error:
        if isinstance(error, EquibitError):
            raise
        raise FileFormatError(f"its tensors do not fit together: {error}") from error
    recipe = source.recipe
    local = recipe is not None and recipe.vectors.frame == "local"
    rounded = recipe is not None and recipe.vectors.codec != "identity"
    bits = None if recipe is None else recipe.attention_bits
    config |= {
        "attention_highest": 0 if bits is None else 2 ** (bits - 1) - 1,
        "local_frames": rounded and local,
        "orient": not rounded or local,
    }
    return EngineModel(name, "fp32" if recipe is None else recipe.name, elements, config, arrays)


def _channels(irreps: str) -> list[int]:
    """Channels by degree, 0 … L, which the file's writer has checked to be of natural parity."""
    terms = re.findall(r"(\d+)x(\d)[eo]", irreps)
    channels = {int(degree): int(count) for count, degree in terms}
    if not terms or sorted(channels) != list(range(len(terms))) or len(terms) > 4:
        raise ValueError(f"irreps {irreps!r}")
    counts = [channels[degree] for degree in range(len(terms))]
    if len(set(counts[1:])) > 1:
        raise ValueError(f"irreps {irreps!r}: degrees above 0 of different width")
    return counts


class _Source:
    """Tensors of a model file, with the codes of quantised layers unpacked on request.

    Attributes:
        tensors: by name.
        recipe: or None for a float network.
    """

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], quantization: Mapping[str, Any] | None
    ) -> None:
        self.tensors = tensors
        self.recipe: Recipe | None = None
        self._layers: Mapping[str, Any] = {}
        self._exponents: Mapping[str, int] = {}
        if quantization is not None:
            self.recipe = Recipe.from_mapping(dict(quantization["recipe"]))
            self._layers = quantization["layers"]
            self._exponents = quantization["center_exponents"]
            _check_recipe(self.recipe)

    def quantized(self, layer: str) -> bool:
        return layer in self._layers

    def rounds_inputs(self, layer: str) -> bool:
        """Whether the layer's product runs in integers."""
        return self.quantized(layer) and not self._layers[layer].get("weight_only", False)

    def centers(self, layer: str) -> NDArray[np.float32]:
        """Mean inputs by species. Shape: [species, in]."""
        name = f"{layer}.input_quantizer.centers"
        return _f32(self.tensors[name] * np.float32(2.0 ** int(self._exponents[name])))

    def codes(self, layer: str) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
        """Codes, steps and the number of input channels that share one.

        Shape: → [out, in], [out, groups].
        """
        entry = self._layers[layer]
        out, channels = (int(n) for n in entry["shape"])
        codes = unpack_codes(self.tensors[f"{layer}.codes"], int(entry["bits"]), (out, channels))
        packed = PackedSteps(
            self.tensors[f"{layer}.steps"], entry["step_format"], int(entry["first_step"])
        )
        steps = unpack_steps(packed)
        grouped = entry["granularity"] == "group"
        group = min(int(entry["group_size"]), channels) if grouped else channels
        if entry["granularity"] == "tensor":
            steps = np.broadcast_to(steps.reshape(1, 1), (out, 1))
        return codes, _f32(steps), max(group, 2)

    def weight(self, layer: str) -> NDArray[np.float32]:
        """The weight as the network uses it, step · code where it is quantised. Shape: [out, in]."""
        if not self.quantized(layer):
            return _f32(self.tensors[f"{layer}.weight"])
        codes, steps, group = self.codes(layer)
        if steps.shape[1] > 1:
            steps = steps.repeat(group, 1)[:, : codes.shape[1]]
        return _f32(codes * steps)


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what the engine has no integer arithmetic for.

    Raises:
        ModelError: names the part of the recipe.
    """
    problem = None
    vectors = recipe.vectors
    if recipe.scalars is not None and recipe.scalars.scale != "dynamic":
        problem = f"scalars of scale {recipe.scalars.scale!r}"
    if vectors.codec not in ("identity", "mddq"):
        problem = f"vectors of codec {vectors.codec!r}"
    elif vectors.codec == "mddq" and vectors.scale != "dynamic":
        problem = f"vectors of scale {vectors.scale!r}"
    if problem is not None:
        raise ModelError(
            f"the engine does not run the recipe {recipe.name!r} yet ({problem}): compute with "
            "torch (equibit.load_potential)"
        )


def _arrays(config: Mapping[str, Any], source: _Source) -> Arrays:
    tensors = source.tensors
    arrays: Arrays = {
        "energy_scale": _f64(tensors["energy_scale"]),
        "energy_shift": _f64(tensors["energy_shift"]),
        "embedding": _f32(tensors["embedding.weight"]),
    }
    projection = tensors["basis.projection"].astype(np.float64)
    for layer in range(config["layers"]):
        attend, update = f"attention.{layer}", f"update.{layer}"
        _norm(arrays, source, f"{attend}.norm")
        inputs = [f"{attend}.{part}" for part in ("query", "key", "value")]
        _product(arrays, source, f"{attend}.qkv", inputs)
        if config["robust"]:
            arrays[f"{attend}.temperature"] = _f32(tensors[f"{attend}.attention.temperature"])
        weight = source.weight(f"{attend}.filter").astype(np.float64)
        arrays[f"{attend}.table"] = _f32(projection @ weight.T)
        _product(arrays, source, f"{attend}.output")
        _norm(arrays, source, f"{update}.norm")
        for degree in range(1, config["max_degree"] + 1):
            _vector_product(arrays, source, f"{update}.mix.{degree}")
        if config["max_degree"] > 1 and layer < config["layers"] - 1:
            arrays[f"{update}.products"] = _f32(tensors[f"{update}.products.weight"])
        _product(arrays, source, f"{update}.hidden")
        _product(arrays, source, f"{update}.output")
    _norm(arrays, source, "head.norm")
    for part in ("head.hidden", "head.output"):
        arrays[f"{part}.weight"] = source.weight(part)
        arrays[f"{part}.bias"] = _f32(tensors[f"{part}.bias"])
    for path in coupled_paths(config["max_degree"]):
        arrays["coupling.{}.{}.{}".format(*path)] = coupling(*path)
    return arrays


def _product(
    arrays: Arrays, source: _Source, name: str, parts: Sequence[str] | None = None
) -> None:
    """Products of one input as one product; parts without a bias get zeros."""
    parts = [name] if parts is None else parts
    weights = [source.weight(part) for part in parts]
    biases = [
        _f32(source.tensors.get(f"{part}.bias", np.zeros(len(weight))))
        for part, weight in zip(parts, weights, strict=True)
    ]
    weight, bias = np.concatenate(weights), np.concatenate(biases)
    arrays[f"{name}.weight"] = weight
    rounded = {source.rounds_inputs(part) for part in parts}
    if len(rounded) > 1:
        raise ModelError(f"the engine needs {', '.join(parts)} quantised alike")
    if rounded == {True} and source.recipe is not None and source.recipe.scalars is not None:
        _codes(arrays, source, name, parts)
        arrays[f"{name}.bits"] = np.array([source.recipe.scalars.bits], np.int32)
        if source.recipe.scalars.centered:
            centers = [source.centers(part) for part in parts]
            if any((center != centers[0]).any() for center in centers):
                raise ModelError(f"the engine needs one centre for the inputs of {parts}")
            arrays[f"{name}.centers"] = centers[0]
            bias = _f32(bias + centers[0].astype(np.float64) @ weight.T.astype(np.float64))
    arrays[f"{name}.bias"] = bias


def _vector_product(arrays: Arrays, source: _Source, name: str) -> None:
    arrays[f"{name}.weight"] = source.weight(name)
    if source.recipe is None or not source.rounds_inputs(name):
        return
    _codes(arrays, source, name, [name])
    arrays[f"{name}.bits"] = np.array([24], np.int32)
    vectors = source.recipe.vectors
    if vectors.codec == "mddq":
        highest = 2**vectors.magnitude_bits - 1, 2 ** (vectors.direction_bits - 1) - 1
        arrays[f"{name}.vector"] = np.array(highest, np.int32)


def _codes(arrays: Arrays, source: _Source, name: str, parts: Sequence[str]) -> None:
    each = [source.codes(part) for part in parts]
    groups = {group for _, _, group in each}
    if len(groups) > 1:
        raise ModelError(f"the engine needs one group size for {', '.join(parts)}")
    (group,) = groups
    arrays[f"{name}.codes"] = np.concatenate([codes for codes, _, _ in each])
    arrays[f"{name}.steps"] = np.concatenate([steps for _, steps, _ in each])
    arrays[f"{name}.group"] = np.array([group], np.int32)


def _norm(arrays: Arrays, source: _Source, name: str) -> None:
    for key in ("weight", "bias"):
        arrays[f"{name}.{key}"] = _f32(source.tensors[f"{name}.{key}"])


def _f32(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def _f64(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.ascontiguousarray(array, dtype=np.float64)
