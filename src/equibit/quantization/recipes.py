"""What is rounded, how finely and where, as small frozen objects without torch."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from equibit.structures.errors import ConfigError

Frame = Literal["lab", "local"]

BFLOAT16 = "bfloat16"  # method of weights and scale of scalars that are rounded to it
BFLOAT16_BITS = 16


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightSpec(_Spec):
    """How the weights of a layer become integer codes times steps.

    Attributes:
        bits: width of a code, 2 to 8; 16 for ``bfloat16`` alone, whose codes are numbers themselves.
        granularity: one step per tensor, per output channel, or per group of input channels.
        group_size: input channels that share a step, where granularity is ``group``.
        method: a registered ``WeightQuantizer``.
    """

    bits: int = Field(default=8, ge=2, le=BFLOAT16_BITS)
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group_size: int = Field(default=32, ge=2)
    method: str = "lsq"

    @field_validator("bits")
    @classmethod
    def _known_width(cls, bits: int) -> int:
        if 8 < bits < BFLOAT16_BITS:
            raise ValueError(f"codes of weights have 2 to 8 bits, or {BFLOAT16_BITS} as {BFLOAT16}")
        return bits

    @model_validator(mode="after")
    def _sixteen_bits_are_bfloat16(self) -> WeightSpec:
        if (self.bits == BFLOAT16_BITS) != (self.method == BFLOAT16):
            raise ValueError(
                f"{self.bits} bits by the method {self.method!r}: {BFLOAT16_BITS} bits are those of "
                f"{BFLOAT16!r}, which has no others"
            )
        return self


class ScalarSpec(_Spec):
    """How the invariant inputs of matrix products are rounded.

    Attributes:
        bits: width of a code.
        scale: a registered ``ScalarQuantizer``: ``dynamic`` (per atom), ``static`` (learned), or
            ``bfloat16``, which has none and 16 bits.
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
        scale: ``dynamic`` per atom or one ``static`` learned step; for the codec ``components``, any
            registered ``ScalarQuantizer``.
    """

    codec: str = "mddq"
    frame: Frame = "local"
    magnitude_bits: int = Field(default=8, ge=2, le=16)
    direction_bits: int = Field(default=8, ge=2, le=16)
    scale: str = "dynamic"


class LayerWeights(_Spec):
    """Other weights for some layers.

    Attributes:
        pattern: name pattern (``fnmatch``) of the layers.
        weights: of these.
    """

    pattern: str
    weights: WeightSpec


class Protection(_Spec):
    """Atoms that stay float in training, drawn anew in each pass (Degree-Quant).

    Attributes:
        least, most: probability of the atom with the fewest and with the most neighbours.
    """

    least: float = Field(default=0.0, ge=0, le=1)
    most: float = Field(default=0.1, ge=0, le=1)


class Reconstruction(_Spec):
    """Fitting a quantised network to its FP32 parent, block by block, without labels.

    Attributes:
        learn: ``rounding`` learns whether each weight is rounded up or down, and activation steps
            (QDrop with AdaRound); ``weights`` learns the weights (ZeroQuant's distillation).
        keep: probability that an element of a block's input and of its activations stays float;
            1 gives each block its teacher's input.
        steps: of the optimiser, for each block.
        batch_size, samples: structures per step and in all.
        learning_rate: of roundings or weights.
        step_learning_rate: of activation steps.
        decision: λ, weight of the term that drives roundings to a decision.
    """

    learn: Literal["rounding", "weights"] = "rounding"
    keep: float = Field(default=0.5, ge=0, le=1)
    steps: int = Field(default=20_000, ge=1)
    batch_size: int = Field(default=32, ge=1)
    samples: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    step_learning_rate: float = Field(default=4e-5, gt=0)
    decision: float = Field(default=0.01, ge=0)


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
        readout_bits: the same of the layers that the network lists as ``readout_layers``, whose noise
            nothing behind them averages.
        readout_depth: how many of these layers, those nearest to the energy first.
        weight_only: weights of layers that the network lists as ``weight_only_layers`` (radial
            filters, energy head), whose inputs stay float; None leaves those layers float, which
            costs less accuracy than anything else that fits in their bytes.
        weight_only_layers: name patterns (``fnmatch``) of those among them that this means.
        float_bits: width in which the numbers that stay float (embeddings, norms, biases, filters,
            head) are stored; 16 rounds tables of filters at once and the rest on freezing.
            Arithmetic is float32 all the same.
        keep_fp32: name patterns (``fnmatch``) of layers left alone, beside the network's own.
        layer_weights: weights of layers by name; the first pattern that matches counts.
        protection: atoms that stay float in training, or None.
        smoothing: share a of a channel's size that moves from the outputs of a normalisation into
            the weights behind it (SmoothQuant), or None.
        post_training: fitted by calibration alone; further training is no part of the method.
        reconstruction: how it is fitted to its parent after calibration, or None.
    """

    name: str = "custom"
    weights: WeightSpec = WeightSpec()
    vector_weights: WeightSpec | None = None
    scalars: ScalarSpec | None = ScalarSpec()
    vectors: VectorSpec = VectorSpec()
    attention_bits: int | None = Field(default=None, ge=2, le=16)
    message_bits: int | None = Field(default=None, ge=2, le=16)
    readout_bits: int | None = Field(default=None, ge=2, le=16)
    readout_depth: int = Field(default=1, ge=1)
    weight_only: WeightSpec | None = None
    weight_only_layers: tuple[str, ...] = ("*",)
    float_bits: Literal[16, 32] = 32
    keep_fp32: tuple[str, ...] = ()
    layer_weights: tuple[LayerWeights, ...] = ()
    protection: Protection | None = None
    smoothing: float | None = Field(default=None, ge=0, le=1)
    post_training: bool = False
    reconstruction: Reconstruction | None = None

    def weights_of(self, layer: str) -> WeightSpec:
        """The weights of a layer by its name."""
        own = (entry.weights for entry in self.layer_weights if fnmatchcase(layer, entry.pattern))
        return next(own, self.weights)

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
_CUBE = VectorSpec(codec="mddq-cube")
_FLOAT_VECTORS = VectorSpec(codec="identity")
_LAST = ("head.output",)  # some hundred numbers, of which large parts cancel in each energy


def _published(
    name: str, scale: str, weights: WeightSpec, *, attention_bits: int = 8, **options: Any
) -> Recipe:
    """A quantiser that knows no vectors: each component is rounded as a scalar is, as it comes."""
    return Recipe(
        name=name,
        weights=weights,
        scalars=ScalarSpec(scale=scale),
        vectors=VectorSpec(codec="components", frame="lab", scale=scale),
        attention_bits=attention_bits,
        **options,
    )


def _per_tensor(method: str, bits: int = 8) -> WeightSpec:
    return WeightSpec(method=method, granularity="tensor", bits=bits)


PUBLISHED = (
    _published("jacob-w8a8", "moving-range", _per_tensor("affine")),
    _published("dorefa-w8a8", "fixed", _per_tensor("dorefa")),
    _published("pact-w8a8", "pact", _per_tensor("sawb")),
    _published("lsq-w8a8", "lsq", _per_tensor("lsq-linear")),
    _published("lsq-w4a8", "lsq", _per_tensor("lsq-linear", bits=4)),
    _published("degree-quant-w8a8", "percentile", _per_tensor("affine"), protection=Protection()),
    _published(
        "qdrop-w4a8",
        "lsq",
        WeightSpec(method="adaround", bits=4),
        post_training=True,
        reconstruction=Reconstruction(),
    ),
    _published(
        "smoothquant-w8a8",
        "dynamic",
        WeightSpec(method="absmax"),
        smoothing=0.5,
        post_training=True,
    ),
    _published(
        "zeroquant-w4a8",
        "token",
        WeightSpec(method="min-max", bits=4, granularity="group"),
        layer_weights=(
            LayerWeights(
                pattern="attention.*", weights=WeightSpec(method="min-max", granularity="group")
            ),
        ),
        post_training=True,
        reconstruction=Reconstruction(learn="weights", keep=1.0, learning_rate=1e-4),
    ),
)


def _recommended(name: str, **options: Any) -> Recipe:
    """8-bit activations without loss of symmetry, more bits where noise would reach every energy."""
    return Recipe(
        name=name,
        scalars=_CENTERED,
        vectors=_CUBE,
        attention_bits=16,
        message_bits=16,
        readout_bits=16,
        readout_depth=5,
        weight_only=WeightSpec(),
        float_bits=16,
        keep_fp32=_LAST,
        **options,
    )


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
        _recommended("w8a8", weight_only_layers=("head.*",)),
        _recommended("w4a8", weights=_W4, vector_weights=WeightSpec()),
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
        Recipe(
            name="bf16",
            weights=WeightSpec(bits=BFLOAT16_BITS, granularity="tensor", method=BFLOAT16),
            scalars=ScalarSpec(bits=BFLOAT16_BITS, scale=BFLOAT16, centered=True),
            vectors=_FLOAT_VECTORS,
            float_bits=16,
        ),
        *PUBLISHED,
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
