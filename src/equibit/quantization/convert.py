"""Swap the matrix products of a network for quantised ones, calibrate them, and steer QAT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equibit.networks.attention import AttentionInput
from equibit.networks.context import Context
from equibit.networks.linear import BlockLinear, EquivariantLinear, Linear
from equibit.networks.radial import RadialFilter, SplineBasis
from equibit.quantization import bfloat16, published  # noqa: F401  (register their quantisers)
from equibit.quantization.codecs import VectorQuantizer
from equibit.quantization.protection import DegreeProtection
from equibit.quantization.quantizers import ScalarQuantizer, WeightQuantizer
from equibit.quantization.recipes import Recipe, ScalarSpec, WeightSpec, get_recipe
from equibit.structures.errors import ModelError

if TYPE_CHECKING:
    from equibit.networks.base import AtomisticNetwork
    from equibit.networks.potential import Batch


class QuantizedLayer(nn.Module):
    """What the quantised matrix products share: a rounded weight, and codes once frozen.

    Attributes:
        spec: of the weight.
        weight_quantizer: None once frozen.
        codes, steps: of a frozen weight, integers and floats; ``weight`` then holds what they stand
            for, which is step · code or what the weight quantiser says.
        offsets: of a frozen weight whose numbers are step · (code + offset), else None.
    """

    spec: WeightSpec
    weight: Tensor
    weight_quantizer: WeightQuantizer | None
    codes: Tensor | None
    steps: Tensor | None
    offsets: Tensor | None

    def take_over(self, weight: Tensor, spec: WeightSpec) -> None:
        """Adopt the parameter of a float layer (shared, not copied) and fit its steps."""
        self.spec = spec
        self.weight = weight
        quantizer = WeightQuantizer.named(spec.method)(spec, weight.detach())
        self.weight_quantizer = quantizer.to(weight.device)
        self.codes = self.steps = self.offsets = None

    @property
    def frozen(self) -> bool:
        return self.weight_quantizer is None

    def rounded_weight(self) -> Tensor:
        """ŵ, with straight-through derivatives until frozen. Shape: of the weight."""
        if self.weight_quantizer is None or not self.weight_quantizer.enabled:
            return self.weight
        return self.weight_quantizer(self.weight)

    def set_codes(self, codes: Tensor, steps: Tensor, offsets: Tensor | None = None) -> None:
        """Freeze: from now on the layer knows only integer codes, steps and maybe offsets."""
        dtype, device = self.weight.dtype, self.weight.device
        steps = steps.to(device, dtype)
        offsets = None if offsets is None else offsets.to(device, dtype)
        assert self.weight_quantizer is not None, "codes are set once"
        weight = self.weight_quantizer.dequantize(codes.to(device, dtype), steps, offsets)
        del self.weight
        self.weight_quantizer = None
        self.register_buffer("weight", weight, persistent=False)
        integers = torch.int8 if self.spec.bits <= 8 else torch.int16
        values = {"codes": codes.to(device, integers), "steps": steps, "offsets": offsets}
        for name, value in values.items():
            delattr(self, name)
            self.register_buffer(name, value)

    def freeze(self) -> None:
        """Replace the learned weight by its codes; outputs do not change."""
        if self.weight_quantizer is not None:
            with torch.no_grad():
                codes, steps = self.weight_quantizer.codes(self.weight)
                offsets = self.weight_quantizer.offsets(self.weight)
            self.set_codes(codes, steps, offsets)


class QuantizedLinear(QuantizedLayer, Linear):
    """y = Ŵ Q(x) + b. Shape: as ``Linear``."""

    def __init__(
        self, layer: Linear, spec: WeightSpec, scalars: ScalarSpec | None, n_species: int | None
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.take_over(layer.weight, spec)
        self.bias = layer.bias
        self.input_quantizer = _scalar_quantizer(scalars, layer.in_features, n_species)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        if self.input_quantizer is not None:
            x = self.input_quantizer(x, context)
        return nn.functional.linear(x, self.rounded_weight(), self.bias)


class QuantizedRadialFilter(QuantizedLayer, RadialFilter):  # type: ignore[misc]
    """φ(d) = Ŵᵀ g(d): a B-spline still, so energies stay smooth. Shape: as ``RadialFilter``."""

    def __init__(self, layer: RadialFilter, spec: WeightSpec) -> None:
        nn.Module.__init__(self)
        self.take_over(layer.weight, spec)

    def forward(self, basis: Tensor) -> Tensor:
        return nn.functional.linear(basis, self.rounded_weight())

    def spline_coefficients(self, basis: SplineBasis) -> Tensor:
        """As for the float filter, from the rounded weight."""
        return basis.projection.double() @ self.rounded_weight().double().T


class QuantizedBlockLinear(QuantizedLayer, BlockLinear):  # type: ignore[misc]
    """y_h = Ŵ_h Q(x)_h, one scale per row over all heads. Shape: as ``BlockLinear``."""

    def __init__(
        self,
        layer: BlockLinear,
        spec: WeightSpec,
        scalars: ScalarSpec | None,
        n_species: int | None,
    ) -> None:
        nn.Module.__init__(self)
        self.take_over(layer.weight, spec)
        heads, _, in_features = layer.weight.shape
        self.input_quantizer = _scalar_quantizer(scalars, heads * in_features, n_species)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x, context)
        weight = self.rounded_weight()
        heads = x.unflatten(-1, (weight.shape[0], weight.shape[2]))
        return torch.einsum("hoi,...hi->...ho", weight, heads).flatten(-2)


class QuantizedEquivariantLinear(QuantizedLayer, EquivariantLinear):  # type: ignore[misc]
    """V' = Ŵ Q(V) over channels. Shape: as ``EquivariantLinear``."""

    def __init__(self, layer: EquivariantLinear, recipe: Recipe) -> None:
        nn.Module.__init__(self)
        self.degree = layer.degree
        self.take_over(layer.weight, recipe.vector_weights or recipe.weights)
        quantizer = VectorQuantizer(recipe.vectors, layer.degree)
        self.input_quantizer = quantizer.to(layer.weight.device, layer.weight.dtype)

    def forward(self, v: Tensor, context: Context) -> Tensor:
        return nn.functional.linear(self.input_quantizer(v, context), self.rounded_weight())


def quantize_(network: AtomisticNetwork, recipe: Recipe | str) -> AtomisticNetwork:
    """Put quantised layers in the place of a network's matrix products, in place.

    Parameters are shared, not copied, and keep their names. Weight steps are fitted here; static
    activation steps and species centres need ``calibrate``. Layers whose name matches
    ``network.fp32_layers`` or ``recipe.keep_fp32`` stay float; those that match
    ``network.weight_only_layers`` get ``recipe.weight_only`` weights, or keep their own, and float
    inputs. Inputs of
    layers that match ``network.edge_layers`` are per edge and are never centred; those of
    ``network.message_layers`` have ``recipe.message_bits``, those of the first ``readout_depth`` of
    ``network.readout_layers`` have ``recipe.readout_bits``.

    Sets ``network.uses_local_frames`` and ``network.uses_lab_frames``, on which building batches
    depends. Tables of filters are rounded here, so that a fine-tuning knows them as they will be.

    Args:
        network: an FP32 network.
        recipe: a recipe or the name of one.

    Returns:
        The same network.

    Raises:
        ConfigError: unknown recipe, quantiser or codec.
        ModelError: already quantised, or nothing left to quantise.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if getattr(network, "recipe", None) is not None:
        raise ModelError(
            f"the network is already quantised ({network.recipe.name}): start from its FP32 parent"
        )
    keep = (*network.fp32_layers, *recipe.keep_fp32)
    replacements: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if _matches(name, keep):
            continue
        if _matches(name, network.weight_only_layers):
            chosen = _matches(name, recipe.weight_only_layers)
            replacement = _weight_only(module, recipe.weight_only if chosen else None)
        else:
            per_edge = _matches(name, network.edge_layers)
            n_species = None if per_edge else len(network.config.elements)
            scalars = recipe.scalars
            for bits, layers in (
                (recipe.message_bits, network.message_layers),
                (recipe.readout_bits, network.readout_layers[: recipe.readout_depth]),
            ):
                if scalars and bits and _matches(name, layers):
                    scalars = scalars.model_copy(update={"bits": bits})
            # What a layer is rounded with differs from the recipe in these two places alone.
            own = recipe.model_copy(update={"weights": recipe.weights_of(name), "scalars": scalars})
            replacement = _replacement(module, own, n_species)
        if replacement is not None:
            replacements[name] = replacement.train(module.training)
    if not any(isinstance(module, QuantizedLayer) for module in replacements.values()):
        raise ModelError(f"recipe {recipe.name!r} keeps every layer in FP32: nothing to quantise")
    for name, replacement in replacements.items():
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, replacement)
    frames = {
        module.frame for module in network.modules()
        if isinstance(module, VectorQuantizer) and module.codec.spec.codec != "identity"
    }  # fmt: skip
    network.uses_local_frames = "local" in frames
    network.uses_lab_frames = "lab" in frames
    if recipe.float_bits == 16:
        for module in network.modules():
            if isinstance(module, SplineBasis):
                module.projection.copy_(module.projection.half())
    network.protection = None if recipe.protection is None else DegreeProtection(recipe.protection)
    network.recipe = recipe
    return network


def calibrate(
    network: AtomisticNetwork,
    batches: Iterable[Any],
    run: Callable[[AtomisticNetwork, Batch], Any] | None = None,
) -> None:
    """Run the network in FP32 over a few batches and fit centres, then static steps.

    Args:
        network: after ``quantize_``.
        batches: ``Batch`` objects made by ``orient`` after ``quantize_``, or whatever ``run`` takes.
        run: evaluates the network on a batch; by default its atomic energies.

    Raises:
        ModelError: no batches.
    """
    batches = list(batches)
    if not batches:
        raise ModelError("calibration needs at least one batch of structures")
    run = batch_energies if run is None else run
    scalars = [m for m in network.modules() if isinstance(m, ScalarQuantizer)]
    vectors = [m for m in network.modules() if isinstance(m, VectorQuantizer)]
    weights = [m for m in network.modules() if isinstance(m, WeightQuantizer)]
    enabled = [weight.enabled for weight in weights]
    try:
        for weight in weights:
            weight.enabled = False
        for observation in ("means", "ranges"):
            for scalar in scalars:
                scalar.observing = observation
            for vector in vectors:
                vector.observing = True
            with torch.no_grad():
                for batch in batches:
                    run(network, batch)
            for scalar in scalars:
                scalar.finish()
            for vector in vectors:
                vector.finish()
    finally:
        for weight, was_enabled in zip(weights, enabled, strict=True):
            weight.enabled = was_enabled
        for scalar in scalars:
            scalar.observing = None
        for vector in vectors:
            vector.observing = False


def set_branch(
    network: nn.Module, *, scalars: bool | None = None, vectors: bool | None = None
) -> None:
    """Switch the rounding of a branch on or off, activations and weights; None leaves it.

    The vector branch is all ``EquivariantLinear`` layers, the scalar branch everything else
    [P1 III.C].
    """
    for vector_branch, quantizer in _quantizers(network):
        switch = vectors if vector_branch else scalars
        if switch is not None:
            quantizer.enabled = switch


def vector_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Parameters of the vector branch: weights of channel mixings and the steps of its quantisers."""
    return [
        parameter
        for module in network.modules()
        if isinstance(module, EquivariantLinear)
        for parameter in module.parameters()
    ]


def scalar_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All parameters that are not in the vector branch."""
    vectors = {id(parameter) for parameter in vector_parameters(network)}
    return [parameter for parameter in network.parameters() if id(parameter) not in vectors]


def quantizer_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Learned steps of both branches, for a learning rate or weight decay of their own."""
    return [
        parameter for _, quantizer in _quantizers(network) for parameter in quantizer.parameters()
    ]


def step_done(network: nn.Module) -> None:
    """Tell the quantisers that a step of training is over."""
    for _, quantizer in _quantizers(network):
        if isinstance(quantizer, ScalarQuantizer):
            quantizer.step_done()


def quantizer_penalty(network: nn.Module) -> Tensor | None:
    """What the quantisers add to the loss, or None."""
    terms = [
        term
        for _, quantizer in _quantizers(network)
        if isinstance(quantizer, ScalarQuantizer) and (term := quantizer.penalty()) is not None
    ]
    return torch.stack(terms).sum() if terms else None


def freeze_(network: AtomisticNetwork) -> AtomisticNetwork:
    """Replace learned weights by integer codes and steps, in place.

    Outputs do not change, unless the recipe stores the numbers that stay float in 16 bits: these
    are then rounded.

    Raises:
        ModelError: the network is not quantised.
    """
    layers = [module for module in network.modules() if isinstance(module, QuantizedLayer)]
    if not layers:
        raise ModelError("the network is not quantised: call quantize_ first")
    for layer in layers:
        layer.freeze()
    if network.recipe.float_bits == 16:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not _matches(name.rpartition(".")[0], network.recipe.keep_fp32):
                    parameter.copy_(parameter.half())
    return network


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """Quantised matrix products by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, QuantizedLayer)}


def _quantizers(
    network: nn.Module,
) -> Iterator[tuple[bool, ScalarQuantizer | VectorQuantizer | WeightQuantizer]]:
    """Every quantiser, and whether it belongs to the vector branch."""
    owned = {
        id(module)
        for layer in network.modules()
        if isinstance(layer, QuantizedEquivariantLinear)
        for module in layer.modules()
    }
    for module in network.modules():
        if isinstance(module, ScalarQuantizer | VectorQuantizer | WeightQuantizer):
            yield id(module) in owned, module


def _replacement(module: nn.Module, recipe: Recipe, n_species: int | None) -> nn.Module | None:
    match module:
        case QuantizedLayer():
            return None
        case Linear():
            return QuantizedLinear(module, recipe.weights, recipe.scalars, n_species).to(
                module.weight
            )
        case BlockLinear():
            return QuantizedBlockLinear(module, recipe.weights, recipe.scalars, n_species).to(
                module.weight
            )
        case EquivariantLinear():
            return QuantizedEquivariantLinear(module, recipe)
        case AttentionInput() if recipe.attention_bits is not None:
            scale = recipe.scalars.scale if recipe.scalars is not None else "dynamic"
            spec = ScalarSpec(bits=recipe.attention_bits, scale=scale)
            return _scalar_quantizer(spec, 0, None)
    return None


def _weight_only(module: nn.Module, spec: WeightSpec | None) -> nn.Module | None:
    match module:
        case _ if spec is None or isinstance(module, QuantizedLayer):
            return None
        case Linear():
            return QuantizedLinear(module, spec, None, None)
        case RadialFilter():
            return QuantizedRadialFilter(module, spec)
    return None


def _scalar_quantizer(
    spec: ScalarSpec | None, channels: int, n_species: int | None
) -> ScalarQuantizer | None:
    if spec is None:
        return None
    return ScalarQuantizer.named(spec.scale)(spec, channels, n_species)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def batch_energies(network: AtomisticNetwork, batch: Batch) -> Tensor:
    """Atomic energies of a batch as it stands, in eV. Shape: → [*atoms]."""
    from equibit.networks.potential import atomic_energies

    return atomic_energies(network, batch, batch.edge_vectors)
