"""Low-bit models in the engine: equal codes but for rounding ties, straight-through forces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network
from tests.potential_contract import PotentialContract
from tests.quantization.test_contract import quantized

from equibit import engine
from equibit.engine.potential import kernel_names
from equibit.evaluation.validation import STAIRCASE, probe_crystals
from equibit.models.files import load_potential, save_model
from equibit.quantization.codecs import MDDQCodec, VectorCodec
from equibit.quantization.quantizers import DynamicQuantizer, ScalarQuantizer
from equibit.quantization.recipes import Recipe, ScalarSpec, VectorSpec, WeightSpec, get_recipe
from equibit.structures import ModelError, Potential, Structure

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")


def asymmetric_molecules(count: int = 6) -> list[Structure]:
    """Nothing is degenerate here, so that local frames agree up to flips."""
    generator = np.random.default_rng(3)
    molecules = []
    while len(molecules) < count:
        positions = generator.uniform(0, 4, (9, 3))
        distances = np.linalg.norm(positions[:, None] - positions, axis=-1) + 9 * np.eye(9)
        if distances.min() > 0.8:
            molecules.append(Structure(generator.choice(ELEMENTS, 9), positions))
    return molecules


def model_file(folder: Path, recipe: Recipe | str, **changes: Any) -> Path:
    path = folder / "model.safetensors"
    network = quantized(recipe, tiny_network(**changes))
    save_model(path, network, name="tiny", training={})
    return path


W4 = WeightSpec(bits=4, granularity="group", group_size=8)
BFLOAT16_INPUTS = ScalarSpec(bits=16, scale="bfloat16")

FORMS: dict[str, tuple[Recipe | str, dict[str, Any]]] = {
    "w8a8": ("w8a8", {"irreps": "16x0e+16x1o"}),
    "w4a8": ("w4a8", {"irreps": "64x0e+32x1o", "layers": 3}),
    "w4a8, degree two": ("w4a8", {"irreps": "16x0e+16x1o+16x2e"}),
    "w4a8, degree three": ("w4a8", {"irreps": "8x0e+8x1o+8x2e+8x3o"}),
    "w4a16": ("w4a16", {"irreps": "16x0e+16x1o"}),
    "w8a16": ("w8a16", {"irreps": "16x0e+16x1o"}),
    "bf16": ("bf16", {"irreps": "16x0e+16x1o"}),
    "bf16, degree two": ("bf16", {"irreps": "64x0e+32x1o+32x2e", "layers": 3}),
    "bf16, odd sizes": ("bf16", {"irreps": "15x0e+9x1o", "heads": 3}),
    "bf16 inputs of integer weights": (
        Recipe(scalars=BFLOAT16_INPUTS, vectors=VectorSpec(codec="identity")),
        {"irreps": "16x0e+16x1o"},
    ),
    "integer inputs of bf16 weights": (
        Recipe(weights=get_recipe("bf16").weights, scalars=ScalarSpec(centered=True)),
        {"irreps": "16x0e+16x1o"},
    ),
    "components of bf16 mixings": (
        Recipe(weights=get_recipe("bf16").weights, vectors=VectorSpec(codec="cartesian")),
        {"irreps": "16x0e+16x1o"},
    ),
    "axial messages": (
        "w8a8",
        {"irreps": "16x0e+16x1o+16x2e", "axial_messages": True, "attention": "linear"},
    ),
    "messages as other scalars": (
        get_recipe("w8a8").model_copy(update={"message_bits": None}),
        {"irreps": "16x0e+16x1o"},
    ),
    "linear attention": ("w4a8", {"irreps": "16x0e+16x1o", "attention": "linear"}),
    "species centres": (
        Recipe(scalars=ScalarSpec(centered=True), attention_bits=8),
        {"irreps": "16x0e+16x1o"},
    ),
    "many small groups": (Recipe(weights=W4), {"irreps": "24x0e+16x1o"}),
    "one step per tensor": (
        Recipe(weights=WeightSpec(granularity="tensor")),
        {"irreps": "16x0e+16x1o"},
    ),
    "edges of paired heads": (
        "w8a8",
        {"irreps": "32x0e+32x1o", "axial_messages": True, "attention": "linear"},
    ),
    "edges of wide heads": ("w8a8", {"irreps": "64x0e+64x1o+64x2e"}),
    "odd sizes": ("w8a8", {"irreps": "15x0e+9x1o", "heads": 3}),
    "naive-w8a8": ("naive-w8a8", {"irreps": "16x0e+16x1o+16x2e", "attention": "linear"}),
    "paper-w8a8": ("paper-w8a8", {"irreps": "16x0e+16x1o+16x2e"}),
    "paper-w4a8": ("paper-w4a8", {"irreps": "64x0e+32x1o"}),
    "gaq-w4a8": ("gaq-w4a8", {"irreps": "16x0e+16x1o+16x2e"}),
    "learned steps about centres": (
        Recipe(scalars=ScalarSpec(scale="static", centered=True, bits=12), attention_bits=12),
        {"irreps": "16x0e+16x1o"},
    ),
    "components in local frames": (
        Recipe(vectors=VectorSpec(codec="cartesian"), attention_bits=8),
        {"irreps": "16x0e+16x1o+16x2e"},
    ),
    "components of twelve bits": (
        Recipe(vectors=VectorSpec(codec="cartesian", magnitude_bits=12, scale="static")),
        {"irreps": "16x0e+16x1o"},
    ),
    "codewords in local frames": (
        Recipe(vectors=VectorSpec(codec="mddq-codebook", direction_bits=11)),
        {"irreps": "16x0e+16x1o+16x2e"},
    ),
    "codewords of an odd icosphere": (
        Recipe(vectors=VectorSpec(codec="mddq-codebook", frame="lab", direction_bits=7)),
        {"irreps": "16x0e+16x1o"},
    ),
    "laboratory frame": (Recipe(vectors=VectorSpec(frame="lab")), {"irreps": "16x0e+16x1o"}),
    "weights alone": (
        Recipe(scalars=None, vectors=VectorSpec(codec="identity"), weight_only=WeightSpec()),
        {"irreps": "16x0e+16x1o"},
    ),
    "a layer left in FP32": (
        get_recipe("w4a8").model_copy(update={"keep_fp32": ("*.output", "*.mix.*")}),
        {"irreps": "16x0e+16x1o"},
    ),
}


def assert_equals_the_fake_quantised(path: Path, *, least_scale: float = 0.0) -> None:
    """A code that differs at a tie shifts results by a step, so most structures must agree tightly
    and all of them roughly. Energies are held to the forces' size, or ``least_scale`` in eV/Å.

    Where edges are reversed in 16-bit floats, forces may be off by what these may add, 0.2 %; the
    other instruction sets show that the codes are the same."""
    reference = load_potential(path, dtype="float64")
    molecules = asymmetric_molecules()
    expected = reference.compute(molecules)
    for kernels in kernel_names():
        potential = engine.load(path, kernels=kernels)
        got = potential.compute(molecules)
        halves = any(reverse == "16-bit floats" for _, _, reverse in potential.arithmetic)
        errors = []
        for g, e in zip(got, expected, strict=True):
            scale = np.sqrt(np.mean(e.forces**2))
            errors.append(np.sqrt(np.mean((g.forces - e.forces) ** 2)) / scale)
            assert abs(g.energy - e.energy) < 2e-3 * max(scale, least_scale) * len(e.forces)
        assert np.median(errors) < (2e-3 if halves else 1e-3), errors
        assert max(errors) < 3e-2, errors


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_fake_quantised_network(form: str, tmp_path: Path) -> None:
    recipe, changes = FORMS[form]
    path = model_file(tmp_path, recipe, **changes)
    assert_equals_the_fake_quantised(path)


def shared_by_threads() -> Structure:
    """More atoms than one thread takes alone, which is 200."""
    generator = np.random.default_rng(6)
    grid = 1.6 * np.stack(np.meshgrid(*[np.arange(6)] * 3), -1).reshape(-1, 3)
    positions = grid + generator.uniform(-0.2, 0.2, grid.shape)
    return Structure(generator.choice(ELEMENTS, len(grid)), positions)


@pytest.mark.parametrize("irreps", ["64x0e+64x1o", "96x0e+32x1o+32x2e"])
def test_error_of_reversing_edges_in_16_bits(irreps: str, tmp_path: Path) -> None:
    """The same codes, with edges reversed in 16-bit floats and in float32."""
    if not {"amx", "avx512"} <= set(kernel_names()):
        pytest.skip("no arithmetic of 16-bit floats")
    path = model_file(tmp_path, "w8a16", irreps=irreps, layers=4, heads=4)
    halves, floats = (engine.load(path, kernels=kernels) for kernels in ("amx", "avx512"))
    if not any(reverse == "16-bit floats" for _, _, reverse in halves.arithmetic):
        pytest.skip("no arithmetic of 16-bit floats")
    molecules = asymmetric_molecules()
    errors = []
    for got, wanted in zip(halves.compute(molecules), floats.compute(molecules), strict=True):
        error = np.sqrt(np.mean((got.forces - wanted.forces) ** 2))
        errors.append(error / np.sqrt(np.mean(wanted.forces**2)))
    assert 1e-6 < np.median(errors) < 2e-3, errors
    large = shared_by_threads()  # sums of 16 bits, too, do not depend on who makes them
    two = engine.load(path, kernels="amx", threads=2).compute([large])[0]
    np.testing.assert_array_equal(two.forces, halves.compute([large])[0].forces)


def test_company_and_threads_change_no_bit_of_bfloat16(tmp_path: Path) -> None:
    path = model_file(tmp_path, "bf16", irreps="32x0e+32x1o")
    large = shared_by_threads()
    molecules = asymmetric_molecules(3)
    for kernels in kernel_names():
        one, two = (engine.load(path, kernels=kernels, threads=threads) for threads in (1, 2))
        alone = [one.compute([structure])[0] for structure in (*molecules, large)]
        together = [*two.compute([*molecules, large])[:3], *two.compute([large])]
        for got, expected in zip(together, alone, strict=True):
            assert got.energy == expected.energy
            np.testing.assert_array_equal(got.forces, expected.forces)


class QuantizedNativeContract(PotentialContract):
    dtypes = ("float32",)
    skips = STAIRCASE
    recipe: Recipe | str = "w4a8"
    irreps = "16x0e+16x1o"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Potential:
        folder = tmp_path_factory.mktemp("model")
        return engine.load(model_file(folder, cls.recipe, irreps=cls.irreps))


class TestW4A8(QuantizedNativeContract):
    # A code at a tie flips with the last bit of float32 under permutations and rotations.
    tolerance = 3e-2


class TestW8A8OfDegreeTwo(QuantizedNativeContract):
    recipe = "w8a8"
    irreps = "16x0e+16x1o+16x2e"
    tolerance = 3e-2


class TestBF16(QuantizedNativeContract):
    recipe = "bf16"
    tolerance = 3e-2


class TestCodewordsInLocalFrames(QuantizedNativeContract):
    recipe = Recipe(vectors=VectorSpec(codec="mddq-codebook"), attention_bits=8)
    tolerance = 3e-2


class LabFrameContract(QuantizedNativeContract):
    """The papers' forms keep every promise but those that their frame breaks."""

    skips = {  # noqa: RUF012
        **STAIRCASE,
        **dict.fromkeys(
            ("rotation", "reflection", "degenerate"), "vectors are rounded in the laboratory frame"
        ),
    }
    tolerance = 3e-2


class TestNaiveW8A8(LabFrameContract):
    recipe = "naive-w8a8"


class TestPaperW4A8(LabFrameContract):
    recipe = "paper-w4a8"


class TestGaqW4A8(LabFrameContract):
    recipe = "gaq-w4a8"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(name="own", scalars=ScalarSpec(scale="own")), "steps of scale own"),
        (Recipe(name="own", vectors=VectorSpec(codec="own")), "vectors of codec own"),
        (
            Recipe(name="own", scalars=BFLOAT16_INPUTS, attention_bits=16),
            "queries and keys as bfloat16",
        ),
    ],
)
def test_quantisers_of_ones_own_are_left_to_torch(
    recipe: Recipe, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ScalarQuantizer.registry, "own", DynamicQuantizer)
    monkeypatch.setitem(VectorCodec.registry, "own", MDDQCodec)
    path = model_file(tmp_path, recipe)
    assert not engine.supports(path)
    with pytest.raises(ModelError, match=f"{message}.*compute with torch"):
        engine.load(path)


def test_stress_of_crystals_follows_the_fake_quantised_network(tmp_path: Path) -> None:
    path = model_file(tmp_path, "w8a8")
    crystal = probe_crystals(ELEMENTS)["triclinic crystal"]
    (got,) = engine.load(path).compute([crystal], stress=True)
    (expected,) = load_potential(path, dtype="float64").compute([crystal], stress=True)
    np.testing.assert_allclose(got.stress, expected.stress, atol=3e-3 * abs(expected.stress).max())
