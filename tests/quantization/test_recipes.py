"""Recipes are frozen, survive JSON, and answer misspelt input with the nearest name."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from equibit.quantization import RECIPES, Recipe, ScalarSpec, VectorSpec, WeightSpec, get_recipe
from equibit.structures.errors import ConfigError


def test_the_issue_s_recipes_exist() -> None:
    assert set(RECIPES) == {
        "naive-w8a8", "paper-w8a8", "paper-w4a8", "gaq-w4a8", "w8a8", "w4a8", "w4a16", "w8a16", "bf16",
        "jacob-w8a8", "dorefa-w8a8", "pact-w8a8", "lsq-w8a8", "lsq-w4a8", "degree-quant-w8a8",
        "qdrop-w4a8", "smoothquant-w8a8", "zeroquant-w4a8",
    }  # fmt: skip
    assert get_recipe("w4a8").weights.bits == 4
    assert get_recipe("w4a8").vectors.frame == "local"
    assert get_recipe("gaq-w4a8").vectors.codec == "mddq-codebook"


def test_layers_can_have_weights_of_their_own() -> None:
    recipe = get_recipe("zeroquant-w4a8")
    assert recipe.weights_of("attention.0.query").bits == 8
    assert recipe.weights_of("update.0.hidden").bits == 4
    assert get_recipe("w4a8").weights_of("attention.0.query").bits == 4


def test_a_misspelt_recipe_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'w4a8'"):
        get_recipe("w4a8x")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_named_recipes_survive_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


@given(
    st.builds(
        Recipe,
        weights=st.builds(WeightSpec, bits=st.integers(2, 8), group_size=st.integers(2, 128)),
        scalars=st.none() | st.builds(ScalarSpec, bits=st.integers(2, 16), centered=st.booleans()),
        vectors=st.builds(VectorSpec, frame=st.sampled_from(["lab", "local"])),
        attention_bits=st.none() | st.integers(2, 16),
        keep_fp32=st.lists(st.text()).map(tuple),
    )
)
def test_any_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"weight": {}}', "weight"),
        ('{"weights": {"bits": 12}}', "weights.bits"),
        ('{"weights": {"bits": 16}}', "16 bits are those of 'bfloat16'"),
        ('{"weights": {"method": "bfloat16"}}', "16 bits are those of 'bfloat16'"),
        ('{"vectors": {"frame": "body"}}', "vectors.frame"),
        ("{", "recipe"),
        ("", "recipe"),
    ],
)
def test_bad_json_names_the_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Recipe.from_json(text)


def test_recipes_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        RECIPES["w4a8"].weights.bits = 8  # type: ignore[misc]


def test_recipes_and_packing_need_no_torch() -> None:
    code = (
        "import sys, equibit.quantization, equibit.quantization.packing;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
