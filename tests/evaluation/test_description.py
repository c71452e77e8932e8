"""What is said about a model file must follow from the file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equibit.evaluation.description import describe_model, recipe_words
from equibit.quantization.packing import pack_codes
from equibit.quantization.recipes import RECIPES, Recipe, get_recipe
from equibit.storage import write_container
from equibit.structures import FileFormatError

NETWORK = {
    "architecture": "equivariant_transformer",
    "elements": [1, 6, 8],
    "cutoff": 5.0,
    "irreps": "8x0e+8x1o",
}


def write_model(path: Path, recipe: str = "w4a8", **changes: Any) -> Path:
    codes = pack_codes(np.zeros((8, 32), int), 4)
    layer = {"shape": [8, 32], "bits": 4, "granularity": "group", "group_size": 32}
    header = {
        "kind": "model",
        "name": "toy",
        "network": NETWORK,
        "quantization": {
            "recipe": get_recipe(recipe).model_dump(mode="json"),
            "layers": {
                "query": {**layer, "input_bits": 16},
                "mix.1": {**layer, "degree": 1},
                "head": {**layer, "weight_only": True},
            },
        },
        "units": {"energy": "eV", "length": "angstrom"},
        "training": {"dataset": "rmd17/ethanol", "seed": 3},
    }
    tensors = {"embedding.weight": np.zeros((3, 8), np.float32)}
    for name in ("query", "mix.1", "head"):
        tensors |= {f"{name}.codes": codes, f"{name}.steps": np.zeros((8, 1), np.uint8)}
    header |= changes
    write_container(path, tensors, {k: v for k, v in header.items() if v is not None})
    return path


def test_layers_recipe_size_and_training_are_told(tmp_path: Path) -> None:
    description = describe_model(write_model(tmp_path / "m.safetensors"))
    assert description.elements == ("H", "C", "O")
    assert description.hyperparameters == {"irreps": "8x0e+8x1o"}
    assert description.recipe == "w4a8"
    head, mix, query = description.layers
    assert head.input == "float"
    assert (query.shape, query.bits, query.steps) == ((8, 32), 4, "per group of 32 inputs")
    assert query.input.startswith("16 bits")
    assert mix.input.startswith("ℓ = 1: mddq-cube in the local frame")
    assert query.bytes == 8 * 32 // 2 + 8
    assert description.n_weights == 3 * 8 * 32 + 24
    assert description.training["seed"] == 3
    assert description.card is None
    digest = hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert description.sha256 == digest


def test_a_card_beside_the_file_is_found(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    path.with_suffix(".md").write_text("card")
    assert describe_model(path).card == str(tmp_path / "m.md")


def test_a_float_model_has_no_recipe(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors", quantization=None)
    description = describe_model(path)
    assert description.recipe == "fp32"
    assert description.layers == ()
    assert description.recipe_words[0].startswith("Everything is FP32")


@pytest.mark.parametrize("key", ["network", "name", "training", "units"])
def test_a_header_without_something_is_refused(tmp_path: Path, key: str) -> None:
    path = write_model(tmp_path / "m.safetensors", **{key: None})
    with pytest.raises(FileFormatError, match=key):
        describe_model(path)


def test_an_unknown_key_of_a_recipe_is_refused(tmp_path: Path) -> None:
    recipe = get_recipe("w4a8").model_dump(mode="json") | {"wobble": 1}
    path = write_model(tmp_path / "m.safetensors", quantization={"recipe": recipe, "layers": {}})
    with pytest.raises(FileFormatError, match="wobble"):
        describe_model(path)


@given(st.sampled_from(sorted(RECIPES)))
def test_words_name_the_bits_of_every_recipe(name: str) -> None:
    recipe: Recipe = RECIPES[name]
    text = " ".join(recipe_words(recipe))
    assert recipe.scalars is not None
    if name == "bf16":
        assert "Weights of quantised layers: bfloat16 codes." in text
        assert (
            "Invariant inputs of matrix products: bfloat16, mean of the species subtracted." in text
        )
        assert "integers" not in text
    else:
        assert f"{recipe.weights.bits}-bit codes" in text
        assert f"{recipe.scalars.bits} bits" in text
    breaks = recipe.vectors.codec != "identity" and recipe.vectors.frame == "lab"
    assert ("breaks equivariance" in text) == breaks
    kept = "Float stay" in text and "energy head" in text.partition("Float stay")[2]
    assert kept == (recipe.weight_only is None)


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, equibit.evaluation.description\n"
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
