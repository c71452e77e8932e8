"""Every quantised form as a potential: what it promises, and what the papers' forms cannot keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network
from tests.potential_contract import PotentialContract

from equibit.evaluation.equivariance import haar_rotations, measure_equivariance
from equibit.evaluation.validation import (
    STAIRCASE,
    probe,
    probe_crystals,
    probe_molecules,
    run_check,
)
from equibit.models.files import load_network, save_model
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import TorchPotential, build_graph, orient
from equibit.networks.so3krates import So3krates, So3kratesConfig
from equibit.quantization.convert import calibrate, freeze_, quantize_, quantized_layers
from equibit.quantization.recipes import RECIPES, Recipe, VectorSpec, get_recipe
from equibit.storage.container import read_container
from equibit.structures import Potential, Structure

LAB = sorted(
    name
    for name, recipe in RECIPES.items()
    if recipe.vectors.frame == "lab" and recipe.vectors.codec != "identity"
)
EXACT = sorted(set(RECIPES) - set(LAB))

MOLECULES = probe_molecules(ELEMENTS)
ALL = [*MOLECULES.values(), *probe_crystals(ELEMENTS).values()]


def quantized(
    recipe: Recipe | str,
    network: AtomisticNetwork | None = None,
    *,
    frozen: bool = True,
) -> AtomisticNetwork:
    """A tiny network after calibration on two molecules."""
    network = tiny_network(irreps="8x0e+8x1o") if network is None else network
    quantize_(network, recipe)
    molecules = [MOLECULES["random molecule"], MOLECULES["tetrahedron"]]
    graph, edge_vectors = build_graph(molecules, ELEMENTS, network.config.cutoff)
    calibrate(network, [orient(network, graph, edge_vectors)])
    return freeze_(network) if frozen else network


def potential_of(network: AtomisticNetwork, dtype: str) -> TorchPotential:
    recipe = "fp32" if network.recipe is None else network.recipe.name
    return TorchPotential(network.to(getattr(torch, dtype)), recipe=recipe)


class QuantizedContract(PotentialContract):
    """All checks in float64, where no rounding tie hides behind float noise."""

    recipe: Recipe | str = "w4a8"
    irreps = "8x0e+8x1o"
    dtypes = ("float64",)
    skips = STAIRCASE

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str) -> Potential:
        return potential_of(quantized(cls.recipe, tiny_network(irreps=cls.irreps)), dtype)


class TestW8A8(QuantizedContract):
    recipe = "w8a8"


class TestW4A8(QuantizedContract):
    recipe = "w4a8"


class TestW4A8OfDegreeTwo(QuantizedContract):
    recipe = "w4a8"
    irreps = "8x0e+8x1o+8x2e"


class TestW4A16(QuantizedContract):
    recipe = "w4a16"


class TestW8A16(QuantizedContract):
    recipe = "w8a16"


class TestBF16(QuantizedContract):
    recipe = "bf16"


class TestBF16OfDegreeTwo(QuantizedContract):
    recipe = "bf16"
    irreps = "8x0e+8x1o+8x2e"


class TestWeightsOnly(QuantizedContract):
    """Rounded weights leave a smooth energy: nothing needs to be skipped."""

    recipe = Recipe(scalars=None, vectors=VectorSpec(codec="identity"), attention_bits=None)
    skips = {}  # noqa: RUF012


class TestFourBitVectors(QuantizedContract):
    """Coarse rounding is as symmetric as fine rounding."""

    recipe = Recipe(vectors=VectorSpec(codec="cartesian", magnitude_bits=4), attention_bits=4)
    irreps = "8x0e+8x1o+8x2e"


class TestLocalCodebook(QuantizedContract):
    recipe = Recipe(vectors=VectorSpec(codec="mddq-codebook", direction_bits=8), attention_bits=8)


def invariant(name: str) -> Recipe:
    """A published quantiser of weights and scalars with vectors rounded in local frames."""
    return get_recipe(name).model_copy(update={"vectors": VectorSpec()})


class TestJacobOfInvariants(QuantizedContract):
    """Affine rounding is not odd, and of invariants need not be."""

    recipe = invariant("jacob-w8a8")


class TestDoReFaOfInvariants(QuantizedContract):
    recipe = invariant("dorefa-w8a8")


class TestPACTOfInvariants(QuantizedContract):
    recipe = invariant("pact-w8a8")


class TestDegreeQuantOfInvariants(QuantizedContract):
    """Judged as it is used: atoms are protected in training alone."""

    recipe = invariant("degree-quant-w8a8")


class TestQDropOfInvariants(QuantizedContract):
    recipe = invariant("qdrop-w4a8")


class TestZeroQuantOfInvariants(QuantizedContract):
    recipe = invariant("zeroquant-w4a8")


class TestQuantizedSo3krates(QuantizedContract):
    """Its matrix products act on invariants only, so any recipe keeps its symmetry."""

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str) -> Potential:
        torch.manual_seed(0)
        config = So3kratesConfig(
            elements=ELEMENTS, cutoff=4.0, features=12, layers=2, heads=3, radial_basis=6
        )
        return potential_of(quantized("naive-w8a8", So3krates(config)), dtype)


@pytest.mark.parametrize("recipe", LAB)
def test_lab_frames_break_rotation_measurably(recipe: str) -> None:
    """The papers' forms, in float64: the error is the method's, not the arithmetic's."""
    potential = potential_of(quantized(recipe), "float64")
    assert potential.network.uses_lab_frames
    result = run_check("rotation", probe(potential))
    assert result.outcome == "failed"
    assert result.deviation is not None
    assert result.deviation > 1e-4


def test_naive_lee_is_orders_above_that_of_local_frames() -> None:
    molecules = [MOLECULES["random molecule"], MOLECULES["bent planar molecule"]]
    lee = {
        recipe: measure_equivariance(
            potential_of(quantized(recipe), "float64"), molecules, n_rotations=8
        ).forces
        for recipe in ("naive-w8a8", "w8a8", "w4a8")
    }
    assert lee["naive-w8a8"].mean > 1.0  # meV/Å
    for recipe in ("w8a8", "w4a8"):
        assert lee[recipe].maximum < 1e-8
        assert lee[recipe].mean < lee["naive-w8a8"].mean / 1e6


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_float32_lee_of_local_frames_is_near_the_floor(recipe: str) -> None:
    """Canonical orientation makes the input of rotated copies equal, ties included."""
    molecules = [MOLECULES["random molecule"], MOLECULES["tetrahedron"]]
    lee = measure_equivariance(
        potential_of(quantized(recipe), "float32"), molecules, n_rotations=16
    ).forces
    naive = measure_equivariance(
        potential_of(quantized("naive-w8a8"), "float32"), molecules, n_rotations=16
    ).forces
    assert lee.median < 0.01  # meV/Å
    assert lee.mean < naive.mean / 30


@pytest.mark.parametrize("recipe", EXACT)
def test_quantisation_changes_the_forces_but_little(recipe: str) -> None:
    """The rounding is really there, and is the small perturbation that it should be."""
    molecules = [MOLECULES["random molecule"], MOLECULES["tetrahedron"]]
    parent = TorchPotential(tiny_network()).compute(molecules)
    child = potential_of(quantized(recipe), "float32").compute(molecules)
    for one, other in zip(parent, child, strict=True):
        difference = np.abs(one.forces - other.forces).max() / np.abs(one.forces).max()
        assert 1e-5 < difference < 0.6


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_frozen_and_saved_models_give_identical_outputs(recipe: str, tmp_path: Path) -> None:
    network = quantized(recipe, frozen=False)
    before = potential_of(network, "float32").compute(ALL)
    freeze_(network)
    save_model(tmp_path / "m.safetensors", network, name="tiny", training={})
    loaded, header = load_network(tmp_path / "m.safetensors")
    assert header["name"] == "tiny"
    assert loaded.recipe == network.recipe
    frozen, read = (TorchPotential(version).compute(ALL) for version in (network, loaded))
    pairs = list(zip(frozen, read, strict=True))
    if network.recipe.float_bits == 32:
        pairs += zip(before, frozen, strict=True)
    for one, other in pairs:
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.forces, other.forces)
    # Where freezing also rounds what stays float to 16 bits, it changes next to nothing.
    for one, other in zip(before, frozen, strict=True):
        assert np.abs(one.forces - other.forces).max() < 0.02 * (1 + np.abs(one.forces).max())


@pytest.mark.parametrize(("recipe", "bits"), [("w4a8", 4), ("w8a8", 8), ("bf16", 16)])
def test_codes_are_stored_at_their_width(recipe: str, bits: int, tmp_path: Path) -> None:
    network = quantized(recipe, tiny_network(irreps="32x0e+32x1o"))
    path = tmp_path / "m.safetensors"
    save_model(path, network, name="tiny", training={})
    tensors = read_container(path, kind="model").tensors
    for name, layer in quantized_layers(network).items():
        codes = layer.weight.numel() * layer.spec.bits // 8
        assert tensors[f"{name}.codes"].nbytes == codes + layer.steps.numel()
        assert f"{name}.weight" not in tensors
    values = [layer for n, layer in quantized_layers(network).items() if "value" in n]
    assert {layer.spec.bits for layer in values} == {bits}


def test_files_shrink_with_the_bits(tmp_path: Path) -> None:
    sizes = {}
    for recipe in (None, "w8a8", "w4a8"):
        network = tiny_network(irreps="64x0e+64x1o", radial_functions=4)
        if recipe is not None:
            quantized(recipe, network)
        path = tmp_path / f"{recipe}.safetensors"
        save_model(path, network, name="tiny", training={})
        sizes[recipe] = path.stat().st_size
    assert sizes[None] > 2.5 * sizes["w8a8"] > 2.5 * 1.4 * sizes["w4a8"]


def test_reflections_of_a_chiral_molecule_are_exact_in_float64() -> None:
    generator = np.random.default_rng(3)
    centre = np.zeros((1, 3))
    arms = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    positions = np.concatenate([centre, arms * generator.uniform(1.0, 1.5, (4, 1))])
    chiral = Structure([6, 1, 8, 6, 1], positions)
    network = quantized("w4a8", tiny_network(irreps="8x0e+8x1o+8x2e"))
    potential = potential_of(network, "float64")
    before = potential.compute([chiral])[0]
    for rotation in haar_rotations(4, seed=1, improper=True):
        after = potential.compute([chiral.rotated(rotation)])[0]
        assert after.energy == pytest.approx(before.energy, abs=1e-10)
        np.testing.assert_allclose(after.forces, before.forces @ rotation.T, atol=1e-10)
