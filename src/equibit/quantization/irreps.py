"""Post-training quantisation of networks built from e3nn, each irrep rounded as it deserves.

Any module that e3nn or PyTorch provides is wrapped, not rewritten: its weights are rounded path by
path, per output channel, and its inputs irrep by irrep, scalars as numbers and ℓ ≥ 1 as vectors by
the recipe's codec in the recipe's frame. With local frames, or with float vectors, the network
stays exactly equivariant; with vectors rounded component by component in the laboratory frame it
does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from equibit.networks.context import Context
from equibit.networks.harmonics import wigner_d
from equibit.quantization.codecs import VectorQuantizer
from equibit.quantization.quantizers import ScalarQuantizer, WeightQuantizer
from equibit.quantization.recipes import Recipe, WeightSpec, get_recipe
from equibit.structures.errors import ModelError

_CYCLE = [2, 0, 1]  # e3nn's degree 1 is (x, y, z), that of equibit (y, z, x)


@dataclass(frozen=True)
class Path:
    """A matrix inside a flat weight.

    Attributes:
        start, shape: where it begins, and its axes there.
        out_axis: which axis counts output channels.
        degree: ℓ of what it makes.
    """

    start: int
    shape: tuple[int, ...]
    out_axis: int
    degree: int = 0

    def matrix(self, weight: Tensor) -> Tensor:
        """Shape: [numbers] → [out, in]."""
        own = weight.flatten()[self.start : self.start + prod(self.shape)].reshape(self.shape)
        return own.movedim(self.out_axis, 0).flatten(1)

    def flat(self, matrix: Tensor) -> Tensor:
        """The reverse. Shape: [out, in] → [numbers of the path]."""
        axes = list(self.shape)
        out = axes.pop(self.out_axis)
        return matrix.reshape(out, *axes).movedim(0, self.out_axis).flatten()


@dataclass(frozen=True)
class Layer:
    """What has to be known of a module to round it.

    Attributes:
        paths: of its ``weight``; none where it has none.
        inputs: of each positional argument, (channels, degree) block by block.
    """

    paths: tuple[Path, ...]
    inputs: tuple[tuple[tuple[int, int], ...], ...]


Known = Mapping[type[nn.Module], Callable[[Any], Layer]]


def matrix_layer(rows: int, columns: int, *, out_axis: int) -> Layer:
    """A plain matrix product over scalars whose weight is [rows, columns]."""
    inputs = columns if out_axis == 0 else rows
    return Layer((Path(0, (rows, columns), out_axis),), (((inputs, 0),),))


def known_layers() -> dict[type[nn.Module], Callable[[Any], Layer]]:
    """Modules of PyTorch and e3nn that can be rounded.

    Raises:
        ModuleNotFoundError: e3nn is not installed.
    """
    from e3nn import o3
    from e3nn.nn import Gate, NormActivation
    from e3nn.nn._fc import _Layer

    return {
        nn.Linear: lambda m: matrix_layer(m.out_features, m.in_features, out_axis=0),
        _Layer: lambda m: matrix_layer(*m.weight.shape, out_axis=1),
        o3.Linear: _linear,
        o3.FullyConnectedTensorProduct: _tensor_product,
        Gate: lambda m: Layer((), (_blocks(m.irreps_in),)),
        NormActivation: lambda m: Layer((), (_blocks(m.irreps_in),)),
    }


def _linear(module: Any) -> Layer:
    if not module.internal_weights:
        raise ModelError("an e3nn Linear gets its weights from outside; keep it in FP32")
    return Layer(
        _paths([i for i in module.instructions if i.i_in != -1], module.irreps_out, out_axis=1),
        (_blocks(module.irreps_in),),
    )


def _tensor_product(module: Any) -> Layer:
    weighted = [i for i in module.instructions if i.has_weight]
    return Layer(
        _paths(weighted, module.irreps_out, out_axis=2),
        (_blocks(module.irreps_in1), _blocks(module.irreps_in2)),
    )


def _paths(instructions: Sequence[Any], irreps_out: Any, *, out_axis: int) -> tuple[Path, ...]:
    paths, start = [], 0
    for instruction in instructions:
        shape = tuple(instruction.path_shape)
        paths.append(Path(start, shape, out_axis, int(irreps_out[instruction.i_out].ir.l)))
        start += prod(shape)
    return tuple(paths)


def _blocks(irreps: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(mul), int(ir.l)) for mul, ir in irreps if mul)


class Surroundings:
    """What wrapped layers share about the atoms they are looking at.

    Attributes:
        rotations: D_ℓ of each atom's local frame in e3nn's basis, or None. Shape: [atoms, 2ℓ+1, 2ℓ+1].
    """

    def __init__(self, degrees: Sequence[int]) -> None:
        self.degrees = tuple(degrees)
        self.rotations: dict[int, Tensor] | None = None

    def set_frames(self, frames: Tensor, dtype: torch.dtype) -> None:
        """Take the frames of the next call; columns are the axes. Shape: [atoms, 3, 3]."""
        renamed = frames[..., _CYCLE, :][..., _CYCLE]
        self.rotations = {k: wigner_d(k, renamed).to(dtype) for k in self.degrees}


class RoundedLayer(nn.Module):
    """A module of another package with rounded weights and inputs.

    Attributes:
        layer: the module, as it was.
        paths: where its matrices are.
        weights: their quantisers.
        scalars, vectors: those of its inputs, ``argument.block`` by name.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layer: Layer,
        recipe: Recipe,
        surroundings: Surroundings,
    ) -> None:
        super().__init__()
        self.layer = module
        self.paths = layer.paths
        self.inputs = layer.inputs
        self.surroundings = surroundings
        weight = getattr(module, "weight", None)
        self.weights = nn.ModuleList()
        for path in layer.paths:
            assert isinstance(weight, Tensor)
            own = recipe.vector_weights if path.degree else None
            wanted = own or recipe.weights_of(name)
            matrix = path.matrix(weight.detach())
            self.weights.append(WeightQuantizer.named(wanted.method)(wanted, matrix))
        self.scalars, self.vectors = nn.ModuleDict(), nn.ModuleDict()
        for argument, blocks in enumerate(layer.inputs):
            for number, (channels, degree) in enumerate(blocks):
                key = f"{argument}_{number}"
                if degree:
                    self.vectors[key] = VectorQuantizer(recipe.vectors, degree)
                elif recipe.scalars is not None:
                    spec = recipe.scalars
                    self.scalars[key] = ScalarQuantizer.named(spec.scale)(spec, channels, None)

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the module. Shape: unchanged."""
        rounded = [self._rounded(number, x) for number, x in enumerate(inputs[: len(self.inputs)])]
        rest = inputs[len(self.inputs) :]
        if not self.paths:
            return self.layer(*rounded, *rest)
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        parts = [
            path.flat(quantizer(path.matrix(weight)) if quantizer.enabled else path.matrix(weight))
            for path, quantizer in zip(self.paths, self.weights, strict=True)
        ]
        given = {"weight": torch.cat(parts).reshape(weight.shape)}
        return torch.func.functional_call(self.layer, given, (*rounded, *rest))

    def _rounded(self, argument: int, x: Tensor) -> Tensor:
        """Each block of an input by its own quantiser. Shape: [rows, channels of all irreps]."""
        context = Context(
            species=torch.empty(0, dtype=torch.int64), rotations=self.surroundings.rotations
        )
        parts, start = [], 0
        for number, (channels, degree) in enumerate(self.inputs[argument]):
            size = channels * (2 * degree + 1)
            block = x[..., start : start + size]
            start += size
            key = f"{argument}_{number}"
            if degree:
                vectors = block.unflatten(-1, (channels, 2 * degree + 1)).transpose(-1, -2)
                self._check_rows(degree, vectors)
                vectors = self.vectors[key](vectors, context)
                block = vectors.transpose(-1, -2).flatten(-2)
            elif key in self.scalars:
                block = self.scalars[key](block, context)
            parts.append(block)
        return torch.cat(parts, -1)

    def _check_rows(self, degree: int, vectors: Tensor) -> None:
        rotations = self.surroundings.rotations
        local = any(quantizer.frame == "local" for quantizer in self.vectors.values())
        if local and (rotations is None or len(rotations[degree]) != len(vectors)):
            there = "none" if rotations is None else f"{len(rotations[degree])} frames"
            raise ModelError(
                f"{len(vectors)} rows of vectors are to be rounded in local frames, but there are "
                f"{there}: give the frames of these atoms to set_frames before each call, and keep "
                "layers whose rows are no atoms in FP32"
            )


def quantize_irreps_(
    network: nn.Module,
    recipe: Recipe | str,
    *,
    keep_fp32: Sequence[str] = (),
    also: Known | None = None,
) -> Surroundings:
    """Wrap the matrix products and gates of an e3nn network in rounding, in place.

    Products with harmonics (``TensorProduct``) have no weights of their own and stay float, their
    inputs being outputs of rounded layers. Static steps need ``calibrate`` afterwards, with
    ``run=`` a function that evaluates the network.

    Args:
        network: in FP32, of any package.
        recipe: a recipe or the name of one; species are unknown here, so nothing is centred.
        keep_fp32: name patterns (``fnmatch``) of modules left alone, beside the recipe's own.
        also: more modules that can be rounded, by class, as ``known_layers``.

    Returns:
        What takes the local frames of the next call, where the recipe rounds in such.

    Raises:
        ConfigError: unknown recipe, quantiser or codec.
        ModelError: nothing to quantise, done already, or a recipe that needs more than rounding.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if recipe.protection or recipe.smoothing or recipe.reconstruction:
        raise ModelError(
            f"recipe {recipe.name!r} needs more than rounding (protection, smoothing or "
            "reconstruction), which is known for equibit's own networks only"
        )
    keep = (*recipe.keep_fp32, *keep_fp32)
    known = {**known_layers(), **(also or {})}
    if any(isinstance(module, RoundedLayer) for module in network.modules()):
        raise ModelError("the network is already quantised: start from its FP32 parent")
    found: dict[str, tuple[nn.Module, Layer]] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        kept = any(fnmatchcase(name, pattern) for pattern in keep)
        describe = known.get(type(module))
        if describe is not None and name and not inside and not kept:
            found[name] = module, describe(module)
    if not any(layer.paths for _, layer in found.values()):
        raise ModelError(
            f"recipe {recipe.name!r} finds no matrix product to quantise; known are "
            f"{', '.join(kind.__name__ for kind in known)}"
        )
    blocks = [block for _, layer in found.values() for own in layer.inputs for block in own]
    degrees = {degree for _, degree in blocks if degree}
    surroundings = Surroundings(sorted(degrees))
    for name, (module, layer) in found.items():
        parent, _, attribute = name.rpartition(".")
        rounded = RoundedLayer(name, module, layer, recipe, surroundings).train(module.training)
        reference = next((p for p in module.parameters()), None)
        setattr(
            network.get_submodule(parent),
            attribute,
            rounded if reference is None else rounded.to(reference),
        )
    return surroundings


def rounded_layers(network: nn.Module) -> dict[str, RoundedLayer]:
    """Wrapped modules by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, RoundedLayer)}


def packed_bytes(network: nn.Module) -> tuple[int, int]:
    """Bytes of all numbers of a wrapped network, and of its FP32 parent.

    Rounded weights count as codes, and a byte for each step; everything else at four bytes.
    """
    rounded = [layer for layer in rounded_layers(network).values() if layer.paths]
    stored = original = 0
    own = set()
    for layer in rounded:
        for path, quantizer in zip(layer.paths, layer.weights, strict=True):
            spec: WeightSpec = quantizer.spec  # type: ignore[assignment]
            numbers = prod(path.shape)
            _, steps = quantizer.codes(path.matrix(layer.layer.weight.detach()))  # type: ignore[operator]
            stored += -(-numbers * spec.bits // 8) + steps.numel()
            original += 4 * numbers
        own.add(id(layer.layer.weight))
    quantizers = {
        id(p)
        for layer in rounded_layers(network).values()
        for part in (layer.weights, layer.scalars, layer.vectors)
        for p in part.parameters()
    }
    for parameter in network.parameters():
        if id(parameter) not in own | quantizers:
            stored += 4 * parameter.numel()
            original += 4 * parameter.numel()
    return stored, original
