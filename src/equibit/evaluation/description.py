"""What a model file holds, in words and numbers, read from the file alone. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equibit.evaluation.metrics import symbol
from equibit.evaluation.record import Record
from equibit.evaluation.size import ModelSize, PartSize, measure_size, packed_layers
from equibit.models.shipped import CARD_SUFFIX
from equibit.quantization.recipes import (
    BFLOAT16,
    BFLOAT16_BITS,
    Recipe,
    ScalarSpec,
    VectorSpec,
    WeightSpec,
)
from equibit.storage import Container, read_container
from equibit.storage.checksum import file_sha256
from equibit.structures.errors import ConfigError, FileFormatError

FP32 = "fp32"
COMPONENT_CODECS = ("cartesian", "components")
_PAIRS = "_filter."  # in the names of layers whose inputs are pairs of atoms
_SHARED = ("architecture", "elements", "cutoff")


@dataclass(frozen=True)
class LayerDescription(Record):
    """One quantised matrix product.

    Attributes:
        name: of the layer.
        shape: of its weight, output channels before input channels.
        bits: width of a weight code.
        steps: what has a step of its own, or that numbers have an exponent instead.
        input: how its input is rounded.
        bytes: of the layer, everything counted.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    steps: str
    input: str
    bytes: int


@dataclass(frozen=True)
class ModelDescription(Record):
    """A model file.

    Attributes:
        file: where it is.
        sha256: of the whole file. The checksum inside it was verified on reading.
        version: of the file format.
        name: of the model.
        architecture, hyperparameters: of the network.
        elements: symbols it was trained on.
        cutoff: in Å, of one layer.
        n_weights: numbers it holds.
        recipe: name of its recipe, ``fp32`` for a float model.
        recipe_details: the recipe as it is stored, or None.
        recipe_words: the recipe in sentences.
        layers: its quantised layers.
        size: by part.
        training: data, labels, split, seed, epochs, parent, as recorded when it was written.
        units: of what it predicts.
        card: its model card, or None.
    """

    file: str
    sha256: str
    version: int
    name: str
    architecture: str
    hyperparameters: Mapping[str, Any]
    elements: tuple[str, ...]
    cutoff: float
    n_weights: int
    recipe: str
    recipe_details: Mapping[str, Any] | None
    recipe_words: tuple[str, ...]
    layers: tuple[LayerDescription, ...]
    size: ModelSize
    training: Mapping[str, Any]
    units: Mapping[str, str]
    card: str | None


def describe_model(path: str | os.PathLike[str]) -> ModelDescription:
    """Read a model file, check all of it, and say what it holds.

    Raises:
        FileFormatError: missing, damaged, foreign, newer, no model, or without what a model says.
    """
    container = read_container(path, kind="model")
    header = container.header
    try:
        network = dict(header["network"])
        architecture, elements, cutoff = (network.pop(key) for key in _SHARED)
        name, training, units = header["name"], header["training"], header["units"]
        quantization = header.get("quantization")
        recipe = None if quantization is None else Recipe.from_mapping(quantization["recipe"])
        size = measure_size(path)
        layers = () if recipe is None else tuple(_layers(container, recipe, size))
    except KeyError as error:
        raise FileFormatError(
            f"{path}: its header says nothing about {error}; write it again"
        ) from error
    except ConfigError as error:
        raise FileFormatError(f"{path}: {error}") from error
    card = Path(path).with_suffix(CARD_SUFFIX)
    return ModelDescription(
        file=str(path),
        sha256=file_sha256(path),
        version=int(header["version"]),
        name=name,
        architecture=architecture,
        hyperparameters=network,
        elements=tuple(symbol(z) for z in elements),
        cutoff=float(cutoff),
        n_weights=sum(part.n_weights for part in size.parts),
        recipe=FP32 if recipe is None else recipe.name,
        recipe_details=None if quantization is None else quantization["recipe"],
        recipe_words=tuple(recipe_words(recipe)),
        layers=layers,
        size=size,
        training=training,
        units=units,
        card=str(card) if card.is_file() else None,
    )


def _layers(container: Container, recipe: Recipe, size: ModelSize) -> Iterator[LayerDescription]:
    parts: Mapping[str, PartSize] = {part.name: part for part in size.parts}
    for name, layer in packed_layers(container.header).items():
        centers = f"{layer.get('centers_of', name)}.input_quantizer.centers"
        yield LayerDescription(
            name=name,
            shape=tuple(layer["shape"]),
            bits=int(layer["bits"]),
            steps="as bfloat16"
            if layer["bits"] == BFLOAT16_BITS
            else _sharing(layer["granularity"], layer["group_size"]),
            input=_input(
                layer, recipe, of_pairs=_PAIRS in name, centered=centers in container.tensors
            ),
            bytes=parts[name].bytes,
        )


def _input(layer: Mapping[str, Any], recipe: Recipe, *, of_pairs: bool, centered: bool) -> str:
    """How a layer's input is rounded."""
    degree = layer.get("degree")
    if degree is not None:
        return f"ℓ = {degree}: {vector_words(recipe.vectors)}"
    if layer.get("weight_only") or recipe.scalars is None:
        return "float"
    own = layer.get("input_bits", recipe.scalars.bits)  # version 1 had one width for all
    words = scalar_words(recipe.scalars.model_copy(update={"bits": own, "centered": centered}))
    return words.replace("per atom", "per pair") if of_pairs else words


def recipe_words(recipe: Recipe | None) -> list[str]:
    """What is rounded and how, and what stays float, as sentences.

    In what numbers the engine then multiplies depends on the processor, and only the engine says it:
    ``equibit.engine.NativePotential.arithmetic``.
    """
    if recipe is None:
        return ["Everything is FP32; atomic energies are scaled, shifted and summed in FP64."]
    sentences = [f"Weights of quantised layers: {weight_words(recipe.weights)}."]
    if recipe.vector_weights is not None:
        sentences.append(f"Weights of channel mixings: {weight_words(recipe.vector_weights)}.")
    for entry in recipe.layer_weights:
        sentences.append(f"Of layers named {entry.pattern}: {weight_words(entry.weights)}.")
    if recipe.scalars is None:
        sentences.append("Invariant inputs of matrix products: float.")
    elif BFLOAT16 in (recipe.scalars.scale, recipe.weights.method):
        sentences.append(
            f"Invariant inputs of matrix products: {scalar_words(recipe.scalars)}. Products are summed "
            "in float32; PyTorch simulates the same rounding in floats."
        )
    else:
        sentences.append(
            f"Invariant inputs of matrix products: {scalar_words(recipe.scalars)}. Both factors are "
            "codes, so that integers can be multiplied; PyTorch simulates the same rounding in floats."
        )
    vectors = recipe.vectors
    reason = (
        "; an atom's channels share one step, so that integers can be multiplied here, too"
        if vectors.codec in COMPONENT_CODECS
        else "; each channel has a length of its own, so vectors are decoded before they are mixed"
    )
    if vectors.codec == "identity":
        reason = ""
    sentences.append(f"Vectors entering channel mixings: {vector_words(vectors)}{reason}.")
    if vectors.codec != "identity":
        sentences.append(
            "The frame turns with the atom, so rounding is equivariant at any bit width."
            if vectors.frame == "local"
            else "The frame is the laboratory's, so rounding breaks equivariance by the LEE measured."
        )
    sentences.append(
        "Queries and keys of the attention: float."
        if recipe.attention_bits is None
        else f"Queries and keys of the attention: {recipe.attention_bits} bits."
    )
    if recipe.message_bits is not None:
        sentences.append(f"Messages gathered by the attention: {recipe.message_bits} bits.")
    if recipe.readout_bits is not None:
        count = recipe.readout_depth
        read = "last update reads" if count == 1 else f"last block's last {count} layers read"
        sentences.append(f"Invariants that the {read}: {recipe.readout_bits} bits.")
    stays = ["embedding", "normalisations", "attention weights", "residual stream"]
    if recipe.weight_only is None:
        stays += ["radial filters", "energy head"]
    else:
        some = recipe.weight_only_layers
        chosen = "" if some == ("*",) else f" (of them {', '.join(some)})"
        sentences.append(
            f"Radial filters and energy head{chosen}: {weight_words(recipe.weight_only, 'weights')}; "
            "their inputs are float, so energies stay smooth in the distances."
        )
    stays += [f"layers named {pattern}" for pattern in recipe.keep_fp32]
    sentences.append(
        f"Float stay {', '.join(stays)}; atomic energies are scaled, shifted and summed in FP64."
    )
    return sentences


def weight_words(spec: WeightSpec, noun: str = "codes") -> str:
    """Rounding of weights in a few words."""
    if spec.method == BFLOAT16:
        return f"{BFLOAT16} {noun}"
    return f"{spec.bits}-bit {noun}, one step {_sharing(spec.granularity, spec.group_size)}"


def scalar_words(spec: ScalarSpec | None) -> str:
    """Rounding of invariant inputs in a few words."""
    if spec is None:
        return "float"
    own = BFLOAT16 if spec.scale == BFLOAT16 else f"{spec.bits} bits, {scale_words(spec.scale)}"
    return own + (", mean of the species subtracted" if spec.centered else "")


def scale_words(scale: str) -> str:
    """Where the step of an activation comes from."""
    return {"dynamic": "dynamic step per atom", "static": "one learned step"}.get(
        scale, f"{scale} step"
    )


def vector_words(spec: VectorSpec) -> str:
    """Rounding of vectors in a few words."""
    if spec.codec == "identity":
        return "float"
    if spec.codec in COMPONENT_CODECS:
        bits = f"{spec.magnitude_bits}-bit components"
    else:
        bits = f"{spec.magnitude_bits}-bit magnitude, {spec.direction_bits}-bit direction"
    scale = scale_words(spec.scale)
    return f"{spec.codec} in the {spec.frame} frame, {bits}, {scale}"


def _sharing(granularity: str, group_size: int) -> str:
    return {
        "tensor": "per tensor",
        "channel": "per output channel",
        "group": f"per group of {group_size} inputs",
    }[granularity]
