"""The engine answers as the torch network does, and keeps every promise of a potential."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network
from tests.potential_contract import PotentialContract

from equibit import engine
from equibit.engine.potential import kernel_names
from equibit.evaluation.validation import probe_crystals, probe_molecules
from equibit.models.files import load_potential, save_model
from equibit.structures import ModelError, Potential, Prediction, Structure, StructureError

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

MOLECULES = probe_molecules(ELEMENTS)
CRYSTALS = probe_crystals(ELEMENTS)


def model_file(folder: Path, **changes: Any) -> Path:
    path = folder / "model.safetensors"
    save_model(path, tiny_network(**changes), name="tiny", training={})
    return path


def assert_all_close(got: list[Prediction], expected: list[Prediction]) -> None:
    """Energies to 1e-6 and forces to 1e-5 of the largest on the structure, or of the median over
    all structures where symmetry cancels it."""
    largest = [np.abs(e.forces).max() for e in expected]
    for g, e, force in zip(got, expected, largest, strict=True):
        scale = max(force, np.median(largest))
        # 1 Å of that force is a difference of energies that means something.
        assert np.abs(g.atomic_energies - e.atomic_energies).max() < 1e-6 * max(scale, 1.0)
        assert np.abs(g.forces - e.forces).max() < 1e-5 * scale
        if e.stress is not None:
            assert np.abs(g.stress - e.stress).max() < 1e-5 * np.abs(e.stress).max()


SHAPES = {
    "scalars": {"irreps": "8x0e"},
    "vectors": {"irreps": "8x0e+8x1o"},
    "degree two": {"irreps": "8x0e+8x1o+8x2e"},
    "degree three": {"irreps": "8x0e+8x1o+8x2e+8x3o", "heads": 1},
    "one block per head": {"irreps": "32x0e+16x1o+16x2e", "layers": 3},
    "two blocks per head": {"irreps": "64x0e+32x1o", "layers": 3},
    "linear attention": {"irreps": "16x0e+16x1o", "attention": "linear", "layers": 3},
    "axial messages": {"irreps": "16x0e+16x1o", "axial_messages": True, "layers": 3},
    "axial messages of degree three": {
        "irreps": "8x0e+8x1o+8x2e+8x3o",
        "axial_messages": True,
        "attention": "linear",
        "heads": 1,
    },
    "plain attention": {"robust_attention": False},
    "one layer": {"layers": 1},
    "odd sizes": {"irreps": "15x0e+9x1o", "heads": 3, "hidden": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_network_in_float64(shape: str, tmp_path: Path) -> None:
    path = model_file(tmp_path, **SHAPES[shape])
    reference = load_potential(path, dtype="float64")
    for kernels in kernel_names():
        native = engine.load(path, kernels=kernels)
        assert native.kernels == kernels
        molecules, crystals = list(MOLECULES.values()), list(CRYSTALS.values())
        assert_all_close(native.compute(molecules), reference.compute(molecules))
        assert_all_close(
            native.compute(crystals, stress=True), reference.compute(crystals, stress=True)
        )


class NativeContract(PotentialContract):
    dtypes = ("float32",)
    irreps = "8x0e+8x1o"
    attention = "softmax"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Potential:
        folder = tmp_path_factory.mktemp("model")
        return engine.load(model_file(folder, irreps=cls.irreps, attention=cls.attention))


class TestVectors(NativeContract):
    pass


class TestDegreeTwo(NativeContract):
    irreps = "8x0e+8x1o+8x2e"


class TestLinearAttention(NativeContract):
    attention = "linear"


def test_results_do_not_depend_on_the_batch_or_on_earlier_calls(tmp_path: Path) -> None:
    native = engine.load(model_file(tmp_path))
    structures = [*MOLECULES.values(), *CRYSTALS.values()]
    together = native.compute(structures)
    for structure, expected in zip(structures, together, strict=True):
        (alone,) = native.compute([structure])
        assert alone.energy == expected.energy
        assert (alone.forces == expected.forces).all()
        (energy,) = native.compute([structure], forces=False)
        assert energy.energy == expected.energy
        assert energy.forces is None


def test_threads_may_share_a_potential(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    native = engine.load(model_file(tmp_path))
    structures = list(MOLECULES.values()) * 20
    expected = [p.energy for p in native.compute(structures)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda s: native.compute([s])[0].energy, structures))
    assert got == expected


def test_threads_change_nothing(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    one, three = engine.load(path), engine.load(path, threads=3)
    generator = np.random.default_rng(0)
    large = Structure(
        generator.choice(ELEMENTS, 343),
        np.stack(np.meshgrid(*[np.arange(7) * 1.6] * 3), -1).reshape(-1, 3)
        + generator.uniform(-0.2, 0.2, (343, 3)),
    )
    structures = [large, *MOLECULES.values(), *CRYSTALS.values()]
    for got, expected in zip(three.compute(structures), one.compute(structures), strict=True):
        assert (got.atomic_energies == expected.atomic_energies).all()
        assert (got.forces == expected.forces).all()
    (got,), (expected,) = three.compute([large]), one.compute([large])
    assert (got.forces == expected.forces).all()
    with pytest.raises(ModelError, match="threads is 0"):
        engine.load(path, threads=0)


def test_far_apart_atoms_are_isolated(tmp_path: Path) -> None:
    native = engine.load(model_file(tmp_path))
    apart = Structure([1, 8], [[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    (prediction,) = native.compute([apart])
    assert (prediction.forces == 0).all()
    (alone,) = native.compute([Structure([8], [[1.0, 2.0, 3.0]])])
    assert prediction.atomic_energies[1] == alone.energy


def test_bad_structures_are_refused_as_by_torch(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    native, reference = engine.load(path), load_potential(path)
    unknown = Structure([1, 9], [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    twins = Structure([1, 1, 8], [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.001, 0.0]])
    for structure, error in ((unknown, ModelError), (twins, StructureError)):
        messages = []
        for potential in (native, reference):
            with pytest.raises(error) as caught:
                potential.compute([structure])
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    with pytest.raises(StructureError, match="no stress"):
        native.compute([twins], stress=True)


def test_a_damaged_network_never_answers_nan(tmp_path: Path) -> None:
    network = tiny_network()
    network.head["output"].weight.data[:] = float("inf")
    save_model(tmp_path / "model.safetensors", network, name="broken", training={})
    native = engine.load(tmp_path)
    with pytest.raises(ModelError, match="not a finite number"):
        native.compute([MOLECULES["pair"]])


def test_unknown_kernels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"known are .*portable"):
        engine.load(model_file(tmp_path), kernels="sse9")


def test_torch_serves_what_the_engine_does_not(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    assert isinstance(engine.load_preferred(path), engine.NativePotential)
    assert isinstance(engine.load_preferred(path, dtype="float32"), engine.NativePotential)
    assert engine.load_preferred(path, dtype="float64").info.dtype == "float64"


def test_without_the_compiled_module_the_error_says_how_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_file(tmp_path)
    monkeypatch.setattr("equibit.engine.potential._native", lambda: None)
    assert not engine.is_built()
    assert not engine.supports(path)
    with pytest.raises(ModelError, match="pip install"):
        engine.load(path)
    assert engine.load_preferred(path).info.dtype == "float32"


def test_an_ase_calculation_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, ase.build\n"
        "from equibit import Calculator\n"
        "atoms = ase.build.molecule('CH3CH2OH')\n"
        f"atoms.calc = Calculator({str(model_file(tmp_path))!r})\n"
        "atoms.get_forces()\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    source = str(Path(engine.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
