"""Recipes, quantisers, codecs, and the conversion of networks. Recipes alone need no torch."""

from equibit.quantization.recipes import (
    RECIPES,
    Recipe,
    ScalarSpec,
    VectorSpec,
    WeightSpec,
    get_recipe,
)

__all__ = ["RECIPES", "Recipe", "ScalarSpec", "VectorSpec", "WeightSpec", "get_recipe"]
