"""The whole judgement, on potentials whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.evaluation.toy import MorsePotential, labelled, molecule

from equibit.evaluation.batches import predict_all
from equibit.evaluation.evaluate import evaluate
from equibit.evaluation.latency import measure_latency
from equibit.evaluation.size import CodeUse, PartSize, model_size
from equibit.structures import (
    ConfigError,
    DatasetError,
    ModelError,
    Prediction,
    Structure,
    StructureError,
)

TRUTH = MorsePotential(name="truth")
MODEL = MorsePotential(name="model", depth=1.01, tilt=0.001, recipe="toy")
STRUCTURES = labelled(TRUTH, 6)


@pytest.fixture(scope="module")
def result():  # type: ignore[no-untyped-def]
    return evaluate(
        MODEL,
        STRUCTURES,
        parent=TRUTH,
        floors={"FP32 parent": MorsePotential(dtype="float32")},
        n_rotations=2,
        batch_size=4,
        dataset="toys",
    )


def test_parent_is_judged_beside_the_model(result) -> None:  # type: ignore[no-untyped-def]
    assert result.model.info.name == "model"
    assert result.parent.errors.forces.maximum == 0.0
    assert result.model.errors.forces.mae > 1.0
    assert result.distance_to_parent.forces == result.model.errors.forces
    assert set(result.floors) == {"parent", "FP32 parent"}
    assert result.floors["parent"].forces.maximum < 1e-9
    assert result.equivariance.forces.mean > 0.1
    assert result.model.net.torque.mean > 10 * result.parent.net.torque.mean


def test_json_holds_provenance_and_no_raw_arrays(result) -> None:  # type: ignore[no-untyped-def]
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["provenance"]["cpu"]
    assert plain["provenance"]["versions"]["numpy"] == np.__version__
    assert plain["data"] == {
        "dataset": "toys",
        "split": None,
        "subset": None,
        "n_structures": 6,
        "n_atoms": 36,
        "elements": {"H": 18, "C": 12, "O": 6},
        "has_energies": True,
        "has_forces": True,
    }
    assert plain["units"]["forces"] == "meV/Å"
    assert "answers" not in plain


def test_unlabelled_structures_still_tell_symmetry_and_distance() -> None:
    bare = [molecule(seed) for seed in range(3)]
    result = evaluate(MODEL, bare, parent=TRUTH, n_rotations=1, time_calls=False)
    assert result.model.errors is None
    assert result.distance_to_parent is not None
    assert result.equivariance is not None
    assert result.latency is None


def test_symmetry_can_be_left_out_and_limited() -> None:
    calls: list[str] = []
    result = evaluate(
        MODEL,
        STRUCTURES,
        n_rotations=2,
        rotated_structures=2,
        time_calls=False,
        progress=lambda stage, done, total: calls.append(stage),
    )
    assert result.equivariance is not None
    assert result.equivariance.n_structures == 2
    assert {"model", "rotations, model", "Lie derivative"} <= set(calls)
    off = evaluate(MODEL, STRUCTURES, n_rotations=0, time_calls=False)
    assert off.equivariance is None
    assert off.floors == {}


def test_nothing_to_evaluate() -> None:
    with pytest.raises(DatasetError, match="toys holds no structures"):
        evaluate(MODEL, [], dataset="toys")


@dataclass(frozen=True)
class _Broken(MorsePotential):
    guilty: int = 0
    raises: bool = False

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        predictions = super().compute(structures, forces=forces, stress=stress)
        for k, structure in enumerate(structures):
            if structure.info.get("guilty"):
                if self.raises:
                    raise StructureError("atoms 0 and 1 coincide")
                predictions[k] = replace(predictions[k], energy=float("nan"))
        return predictions


@pytest.mark.parametrize(("raises", "error"), [(True, StructureError), (False, ModelError)])
def test_the_guilty_structure_is_named(raises: bool, error: type[Exception]) -> None:
    structures = [molecule(k) for k in range(5)]
    structures[3] = replace(structures[3], info={"guilty": True})
    with pytest.raises(error, match=r"^structure 3: "):
        predict_all(_Broken(raises=raises), structures, batch_size=4)
    with pytest.raises(error, match=r"^structure 3: "):
        predict_all(_Broken(raises=raises), structures, batch_size=3)


def test_latency_takes_turns_and_counts() -> None:
    order: list[str] = []

    @dataclass(frozen=True)
    class Recorder(MorsePotential):
        def compute(self, structures, **kwargs):  # type: ignore[no-untyped-def]
            order.append(self.name)
            return []

    potentials = {"a": Recorder(name="a"), "b": Recorder(name="b")}
    latency = measure_latency(potentials, STRUCTURES, batch_sizes=(1, 8), repeats=2, warmup=1)
    assert order == ["a", "b"] * 6
    assert [(t.name, t.batch_size, t.repeats) for t in latency.timings] == [
        ("a", 1, 2), ("b", 1, 2), ("a", 8, 2), ("b", 8, 2)
    ]  # fmt: skip
    assert latency.timings[2].n_atoms == 48
    assert latency.cpu
    assert latency.threads >= 1
    with pytest.raises(ConfigError, match="batch sizes"):
        measure_latency(potentials, STRUCTURES, batch_sizes=(0,))


def test_size_ratios() -> None:
    parts = [
        PartSize("embed", bits=32, n_weights=100, bytes=400, fp32_bytes=400),
        PartSize("layer", bits=4, n_weights=1000, bytes=520, fp32_bytes=4000),
    ]
    size = model_size(parts, file_bytes=1000)
    assert size.quantized_ratio == pytest.approx(4000 / 520)
    assert size.fp32_file_bytes == 1000 - 920 + 4400
    assert size.file_ratio == pytest.approx(4.48)
    assert model_size(parts[:1], file_bytes=500).quantized_ratio is None
    assert model_size(parts, file_bytes=1000, fp32_file_bytes=5000).file_ratio == 5.0


def test_code_use() -> None:
    use = CodeUse.of("layer", "weight", 4, np.array([-8, -8, 0, 7]), signed=True)
    assert use.codes[0] == -8
    assert use.codes[-1] == 7
    assert use.counts.sum() == 4
    assert use.used == pytest.approx(3 / 16)
    assert use.entropy == pytest.approx(1.5)
