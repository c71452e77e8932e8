"""What is rounded, how finely and where, as small frozen objects without torch."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equibit.structures.errors import ConfigError

Frame = Literal["lab", "local"]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightSpec(_Spec):
    """How the weights of a layer become integer codes times steps.

    Attributes:
        bits: width of a code.
        granularity: one step per tensor, per output channel, or per group of input channels.
        group_size: input channels that share a step, where granularity is ``group``.
        method: a registered ``WeightQuantizer``.
    """

    bits: int = Field(default=8, ge=2, le=8)
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group_size: int = Field(default=32, ge=2)
    method: str = "lsq"


class ScalarSpec(_Spec):
    """How the invariant inputs of matrix products are rounded.

    Attributes:
        bits: width of a code.
        scale: a registered ``ScalarQuantizer``: ``dynamic`` (per atom) or ``static`` (learned).
        centered: subtract the mean activation of the atom's species before rounding and add it
            back after; only for inputs that are per atom.
    """

    bits: int = Field(default=8, ge=2, le=16)
    scale: str = "dynamic"
    centered: bool = False


class VectorSpec(_Spec):
    """How the vectors (ℓ ≥ 1) entering a channel mixing are rounded: a codec in a frame.

    Attributes:
        codec: a registered ``VectorCodec``: ``identity``, ``cartesian``, ``mddq`` or
            ``mddq-codebook``.
        frame: ``lab`` rounds the vector as it comes, ``local`` in the atom's own axes.
        magnitude_bits: width of an unsigned magnitude code; of a component for ``cartesian``.
        direction_bits: width of a direction component (``mddq``) or of a codebook index.
        scale: ``dynamic`` per atom or one ``static`` learned step.
    """

    codec: str = "mddq"
    frame: Frame = "local"
    magnitude_bits: int = Field(default=8, ge=2, le=16)
    direction_bits: int = Field(default=8, ge=2, le=16)
    scale: Literal["dynamic", "static"] = "dynamic"


class Recipe(_Spec):
    """One complete answer to how a network is quantised.

    Attributes:
        name: what files and reports call it.
        weights: weights of all quantised layers.
        vector_weights: weights of channel mixings, where not as ``weights``: they are few, but every
            component of every vector goes through them.
        scalars: invariant inputs of matrix products, or None for float.
        vectors: inputs of channel mixings.
        attention_bits: width of queries and keys in the attention, or None for float.
        message_bits: width of the gathered messages that enter the layers which the network lists
            as ``message_layers``; None rounds them like all other scalars. Every atomic energy goes
            through these few inputs, so their rounding noise is most of the energy's.
        weight_only: weights of layers that the network lists as ``weight_only_layers`` (radial
            filters, energy head), whose inputs stay float; None leaves those layers float, which
            costs less accuracy than anything else that fits in their bytes.
        float_bits: width in which the numbers that stay float (embeddings, norms, biases, filters,
            head) are stored; 16 rounds them once, on freezing. Arithmetic is float32 all the same.
        keep_fp32: name patterns (``fnmatch``) of layers left alone, beside the network's own.
    """

    name: str = "custom"
    weights: WeightSpec = WeightSpec()
    vector_weights: WeightSpec | None = None
    scalars: ScalarSpec | None = ScalarSpec()
    vectors: VectorSpec = VectorSpec()
    attention_bits: int | None = Field(default=None, ge=2, le=16)
    message_bits: int | None = Field(default=None, ge=2, le=16)
    weight_only: WeightSpec | None = None
    float_bits: Literal[16, 32] = 32
    keep_fp32: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The recipe as JSON text; ``from_json`` reads it back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: not JSON, an unknown key or a value out of range.
        """
        return _checked(lambda: cls.model_validate_json(text))

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Recipe:
        """Read plain values, e.g. from a YAML file.

        Raises:
            ConfigError: an unknown key or a value out of range.
        """
        return _checked(lambda: cls.model_validate(values))


def _checked(read: Any) -> Recipe:
    try:
        return read()
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(f"recipe: {problems}") from None


_PER_TENSOR = WeightSpec(granularity="tensor")
_W4 = WeightSpec(bits=4, granularity="group")
_STATIC = ScalarSpec(scale="static")
_CENTERED = ScalarSpec(centered=True)
_CENTERED_16 = ScalarSpec(bits=16, centered=True)
_PAPER_VECTORS = VectorSpec(codec="mddq", frame="lab", scale="static")
_FLOAT_VECTORS = VectorSpec(codec="identity")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="naive-w8a8",
            weights=_PER_TENSOR,
            scalars=_STATIC,
            vectors=VectorSpec(codec="cartesian", frame="lab", scale="static"),
            attention_bits=8,
        ),
        Recipe(name="paper-w8a8", scalars=_STATIC, vectors=_PAPER_VECTORS, attention_bits=8),
        Recipe(
            name="paper-w4a8",
            weights=_W4,
            scalars=_STATIC,
            vectors=_PAPER_VECTORS,
            attention_bits=8,
        ),
        Recipe(
            name="gaq-w4a8",
            weights=_W4,
            scalars=_STATIC,
            vectors=VectorSpec(codec="mddq-codebook", frame="lab", scale="static"),
            attention_bits=8,
        ),
        Recipe(
            name="w8a8",
            scalars=_CENTERED,
            attention_bits=16,
            message_bits=16,
            float_bits=16,
        ),
        Recipe(
            name="w4a8",
            weights=_W4,
            vector_weights=WeightSpec(),
            scalars=_CENTERED,
            attention_bits=16,
            message_bits=16,
            weight_only=WeightSpec(),
            float_bits=16,
        ),
        Recipe(
            name="w4a16",
            weights=_W4,
            scalars=_CENTERED_16,
            vectors=_FLOAT_VECTORS,
            attention_bits=16,
            float_bits=16,
        ),
        Recipe(
            name="w8a16",
            scalars=_CENTERED_16,
            vectors=_FLOAT_VECTORS,
            attention_bits=16,
            float_bits=16,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """The named recipe.

    Raises:
        ConfigError: no recipe of that name; the message offers the closest.
    """
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"no recipe {name!r}: {hint}known are {', '.join(RECIPES)}")
    return RECIPES[name]
