"""Rounding of e3nn networks: symmetric where it should be, exact where it can be computed by hand."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from torch import Tensor, nn

from equibit.networks.context import Context
from equibit.quantization.convert import calibrate
from equibit.quantization.irreps import (
    Surroundings,
    packed_bytes,
    quantize_irreps_,
    rounded_layers,
)
from equibit.quantization.quantizers import DynamicQuantizer
from equibit.quantization.recipes import Recipe, ScalarSpec, VectorSpec, WeightSpec, get_recipe
from equibit.structures import ModelError

HIDDEN = "6x0e+4x1o+3x2e"
FLOAT_VECTORS = Recipe(name="float-vectors", vectors=VectorSpec(codec="identity"))


class Tiny(nn.Module):
    """Vectors in, a number per row out, by every kind of layer that can be rounded."""

    def __init__(self) -> None:
        super().__init__()
        gate = Gate("6x0e", [torch.nn.functional.silu], "7x0e", [torch.sigmoid], "4x1o+3x2e")
        self.embed = o3.Linear("5x0e+2x1o+2x2e", gate.irreps_in)
        self.gate = gate
        self.mix = o3.Linear(HIDDEN, HIDDEN)
        self.connect = o3.FullyConnectedTensorProduct(HIDDEN, "3x0e", HIDDEN)
        self.mlp = FullyConnectedNet([6, 8, 4], torch.nn.functional.silu)
        self.head = nn.Linear(4 + 7, 1)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        y = self.gate(self.embed(x))
        y = self.mix(y) + self.connect(y, species)
        vectors, tensors = y[:, 6:18].unflatten(-1, (4, 3)), y[:, 18:].unflatten(-1, (3, 5))
        invariants = torch.cat((vectors.square().sum(-1), tensors.square().sum(-1)), -1)
        return self.head(torch.cat((self.mlp(y[:, :6]), invariants), -1))


@pytest.fixture(autouse=True)
def double() -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows(count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, species and a frame for each row."""
    x = torch.randn(count, 5 + 6 + 10)
    species = torch.nn.functional.one_hot(torch.arange(count) % 3, 3).double()
    return x, species, o3.rand_matrix(count)


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    return x @ o3.Irreps("5x0e+2x1o+2x2e").D_from_matrix(rotation).T


def error(network: nn.Module, surroundings: Surroundings) -> float:
    """Largest change of the invariant output when rows and their frames turn."""
    x, species, frames = rows()
    surroundings.set_frames(frames, torch.float64)
    expected = network(x, species)
    worst = 0.0
    for rotation in o3.rand_matrix(5):
        surroundings.set_frames(rotation @ frames, torch.float64)
        worst = max(
            worst, float((network(turned(x, rotation), species) - expected).detach().abs().max())
        )
    return worst


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "gaq-local", "float-vectors"])
def test_local_frames_and_float_vectors_keep_the_symmetry(recipe: str) -> None:
    recipes = {
        "gaq-local": Recipe(vectors=VectorSpec(codec="mddq-codebook")),
        "float-vectors": FLOAT_VECTORS,
    }
    network = Tiny()
    surroundings = quantize_irreps_(network, recipes.get(recipe) or get_recipe(recipe))
    assert error(network, surroundings) < 1e-11


@pytest.mark.parametrize("recipe", ["naive-w8a8", "paper-w8a8"])
def test_rounding_in_the_lab_breaks_it(recipe: str) -> None:
    network = Tiny()
    surroundings = quantize_irreps_(network, recipe)
    x, species, _ = rows()
    calibrate(network, [(x, species)], run=lambda net, batch: net(*batch))
    assert error(network, surroundings) > 1e-4


def test_frames_are_turned_into_the_basis_of_e3nn() -> None:
    _, _, frames = rows()
    surroundings = Surroundings((1, 2, 3))
    surroundings.set_frames(frames, torch.float64)
    assert surroundings.rotations is not None
    for degree, found in surroundings.rotations.items():
        expected = o3.Irrep(degree, (-1) ** degree).D_from_matrix(frames)
        torch.testing.assert_close(found, expected)


def test_a_linear_layer_by_hand() -> None:
    layer = o3.Linear("4x0e+3x1o", "2x0e+2x1o")
    network = nn.Sequential(layer)
    x = torch.randn(5, 4 + 9)
    recipe = Recipe(
        weights=WeightSpec(granularity="channel"),
        scalars=ScalarSpec(bits=8),
        vectors=VectorSpec(codec="identity"),
    )
    quantize_irreps_(network, recipe)
    # Path 0e: [4, 2], path 1o: [3, 2]; one step per output channel; 1/sqrt(inputs) of e3nn.
    rounded = []
    for path in (layer.weight[:8].reshape(4, 2), layer.weight[8:].reshape(3, 2)):
        (wrapped,) = rounded_layers(network).values()
        quantizer = wrapped.weights[len(rounded)]
        codes, steps = quantizer.codes(path.T)
        assert steps.shape == (2, 1)
        assert codes.abs().max() <= 127
        assert float((codes * steps - path.T).abs().max()) <= 0.51 * float(steps.max())
        rounded.append((codes * steps).T)
    dynamic = DynamicQuantizer(ScalarSpec(bits=8), 4)
    context = Context(species=torch.empty(0))
    scalars = dynamic(x[:, :4], context) @ rounded[0] / 4**0.5
    vectors = torch.einsum("nci,cd->ndi", x[:, 4:].unflatten(-1, (3, 3)), rounded[1]) / 3**0.5
    expected = torch.cat((scalars, vectors.flatten(1)), -1)
    torch.testing.assert_close(network(x), expected)


def test_steps_and_channels_of_a_tensor_product_belong_together() -> None:
    network = nn.ModuleList([o3.FullyConnectedTensorProduct("2x0e", "3x0e", "4x0e")])
    (layer,) = network
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(2, 3, 4).index_fill(2, torch.tensor([1]), 50.0).flatten())
        layer.weight[0] = 0.01
    quantize_irreps_(network, Recipe(scalars=None))
    (wrapped,) = rounded_layers(network).values()
    matrix = wrapped.paths[0].matrix(layer.weight)
    assert matrix.shape == (4, 6)
    rounded = wrapped.weights[0](matrix)
    # With a step for each output channel the small weight is not lost beside the large ones.
    assert float(rounded[0, 0]) == pytest.approx(0.01, rel=0.05)
    torch.testing.assert_close(wrapped.paths[0].flat(matrix), layer.weight)


def test_enough_bits_give_the_network_back() -> None:
    network = Tiny()
    x, species, frames = rows()
    expected = network(x, species)
    recipe = Recipe(
        scalars=ScalarSpec(bits=16),
        vectors=VectorSpec(magnitude_bits=16, direction_bits=16),
    )
    surroundings = quantize_irreps_(network, recipe)
    for layer in rounded_layers(network).values():
        for quantizer in layer.weights:
            quantizer.enabled = False
    surroundings.set_frames(frames, torch.float64)
    torch.testing.assert_close(network(x, species), expected, atol=3e-3, rtol=3e-3)
    for layer in rounded_layers(network).values():
        for quantizer in layer.weights:
            quantizer.enabled = True
    assert float((network(x, species) - expected).abs().max()) > 1e-4


def test_forces_pass_through_twice() -> None:
    network = Tiny()
    quantize_irreps_(network, FLOAT_VECTORS)
    x, species, _ = rows()
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(x, species).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    weight = rounded_layers(network)["mix"].layer.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


def test_vectors_have_weights_of_their_own() -> None:
    network = Tiny()
    quantize_irreps_(network, Recipe(weights=WeightSpec(bits=4), vector_weights=WeightSpec(bits=8)))
    for name in ("mix", "connect"):
        layer = rounded_layers(network)[name]
        assert [path.degree for path in layer.paths] == [0, 1, 2]
        assert [quantizer.spec.bits for quantizer in layer.weights] == [4, 8, 8]


def test_bytes() -> None:
    network = nn.Sequential(nn.Linear(64, 32))
    quantize_irreps_(network, Recipe())
    # 2048 codes and 32 steps of a byte, 32 biases of four.
    assert packed_bytes(network) == (2048 + 32 + 128, 4 * (2048 + 32))


def test_layers_can_be_left_alone() -> None:
    network = Tiny()
    quantize_irreps_(network, Recipe(), keep_fp32=("head", "mlp.*"))
    assert set(rounded_layers(network)) == {"embed", "gate", "mix", "connect"}
    with pytest.raises(ModelError, match="already quantised"):
        quantize_irreps_(network, Recipe())


def test_what_cannot_be() -> None:
    with pytest.raises(ModelError, match="finds no matrix product"):
        quantize_irreps_(nn.Sequential(nn.ReLU()), Recipe())
    with pytest.raises(ModelError, match="'qdrop-w4a8' needs more than rounding"):
        quantize_irreps_(Tiny(), "qdrop-w4a8")
    network = Tiny()
    quantize_irreps_(network, Recipe())
    x, species, _ = rows()
    with pytest.raises(ModelError, match=r"12 rows of vectors .* there are none"):
        network(x, species)


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)
    text = (FilePath(__file__).parents[2] / "docs" / "quantization.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    exec(next(block for block in blocks if "quantize_irreps_" in block), {})
    assert capsys.readouterr().out == "torch.Size([5, 20])\n"
