"""What is said about rounding agrees with what the engine reports to run, on every instruction set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.networks.test_equivariant_transformer import tiny_network
from tests.networks.test_so3krates import tiny_network as tiny_so3krates
from tests.quantization.test_contract import quantized

from equibit import engine
from equibit.evaluation.description import LayerDescription, describe_model
from equibit.models.files import save_model
from equibit.models.shipped import resolve_model
from equibit.quantization.recipes import RECIPES, LayerWeights, WeightSpec

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

DATA = Path(__file__).parent / "data"
FILES = [
    *sorted(DATA.glob("ethanol-*.safetensors")),
    "ethanol-fp32",
    "ethanol-w8a8",
    "ethanol-w4a8",
]


def layers_of(name: str, layers: Iterable[LayerDescription]) -> list[LayerDescription]:
    """``a.0.query, key`` stands for ``a.0.query``, ``a.0.key`` and what has a longer path to them."""
    first, *others = name.split(", ")
    places = [first, *(f"{first.rpartition('.')[0]}.{other}" for other in others)]
    patterns = [re.compile(r"(\..*)?\.".join(map(re.escape, p.split(".")))) for p in places]
    return [layer for layer in layers if any(p.fullmatch(layer.name) for p in patterns)]


def check_words(path: Path) -> int:
    """Layers of a file against the rows of the engine; how many were compared."""
    layers = describe_model(path).layers
    compared = 0
    for kernels in engine.kernel_names():
        rows = engine.load(path, kernels=kernels).arithmetic
        for name, forward, reverse in rows:
            here = layers_of(name, layers)
            for layer in here:
                bits = max(other.bits for other in here)
                if "bfloat16" in layer.steps:
                    assert fits_bfloat16(layer, forward, reverse, kernels), (
                        layer,
                        forward,
                        kernels,
                    )
                    compared += 1
                    continue
                assert fits(layer, bits, forward, kernels), (layer, forward, kernels)
                back = f"integer: 16-bit gradients, {layer.bits if ';' in reverse else bits}-bit weights"
                assert reverse == "float32" or back in reverse, (layer, reverse)
                compared += 1
            if not here:
                assert "integer" not in forward + reverse, "integers without codes"
    return compared


def fits(layer: LayerDescription, weight_bits: int, forward: str, kernels: str) -> bool:
    """Whether the words about a layer's input allow what the engine says to compute of it."""
    if ";" in forward:  # of parts with weights of their own
        weight_bits = layer.bits
    weights = f"{weight_bits}-bit weights"
    if layer.input == "float":
        return forward == "float32"
    words = layer.input.rpartition("ℓ = ")[2].partition(": ")[2] or layer.input
    if (found := re.match(r"(\d+) bits", words)) or (
        found := re.search(r"(\d+)-bit components", words)
    ):
        integers = f"integer: {found[1]}-bit inputs, {weights}"
    else:  # float, or a length for each channel: carried by integers where tiles multiply those
        on_tiles = f"integer: 24-bit inputs, {weights}"
        return forward == "float32" or (kernels == "amx" and forward == on_tiles)
    return integers in forward or forward == "float32 of rounded inputs and weights"


def fits_bfloat16(layer: LayerDescription, forward: str, reverse: str, kernels: str) -> bool:
    """The same of bfloat16 weights: products of such numbers where the processor has them."""
    if reverse not in ("float32", "gradients as two bfloat16 numbers"):
        return False
    if layer.input.startswith("bfloat16"):
        fast = kernels in ("amx", "avx512") and forward == "bfloat16, sums in float32"
        return fast or forward == "float32 of bfloat16 inputs"
    return forward in ("float32", "float32 as three bfloat16 numbers")


@pytest.mark.parametrize("name", FILES, ids=lambda name: Path(name).stem)
def test_words_about_files_agree_with_the_engine(name: str | Path) -> None:
    path = resolve_model(name)
    assert check_words(path) > 0 or "fp32" in path.name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("build", [tiny_network, tiny_so3krates], ids=["transformer", "so3krates"])
def test_words_about_recipes_agree_with_the_engine(tmp_path: Path, recipe: str, build: Any) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, quantized(recipe, build()), name="tiny", training={})
    if not engine.supports(path):
        pytest.skip("the engine does not run it")
    assert check_words(path) > 0


def test_products_side_by_side_are_all_reported(tmp_path: Path) -> None:
    others = LayerWeights(
        pattern="*.value", weights=WeightSpec(bits=8, granularity="group", group_size=8)
    )
    recipe = RECIPES["paper-w4a8"].model_copy(update={"layer_weights": (others,)})
    path = tmp_path / "model.safetensors"
    network = tiny_network(irreps="16x0e+16x1o")
    save_model(path, quantized(recipe, network), name="tiny", training={})
    forward = {name: words for name, words, _ in engine.load(path).arithmetic}
    assert forward["attention.0.query, key, value"] == (
        "integer: 8-bit inputs, 4-bit weights; integer: 8-bit inputs, 8-bit weights"
    )
