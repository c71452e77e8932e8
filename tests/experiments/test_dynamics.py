"""The dynamics experiment, short, with the shipped models; and what it measures, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.experiments.small import small_rmd17, small_structures

from equibit import engine
from equibit.evaluation.batches import silent
from equibit.experiments.dynamics import (
    Dynamics,
    _claims,
    collapse_time,
    mean_bonds,
    rotated_force_errors,
    walk_width,
)
from equibit.structures import ConfigError, ModelError, Structure
from equibit.structures.potential import PotentialInfo, Prediction

W8A8 = Path(__file__).parents[1] / "engine" / "data" / "ethanol-w8a8-v1.safetensors"


class Biased:
    """The labels' forces, plus an offset that does not turn with the molecule."""

    info = PotentialInfo("biased", (1, 8), 5.0, "float64", "none")

    def __init__(self, offset: float) -> None:
        self.offset = np.array([offset, 0.0, 0.0])

    def compute(
        self, structures: list[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        # The labels turn with the structures, since the toy's forces are -2 (r - rest).
        return [
            Prediction(0.0, np.zeros(len(s)), np.asarray(s.forces) + self.offset)
            for s in structures
        ]


def test_errors_of_turned_structures_by_hand() -> None:
    structures = small_structures(4)
    errors = rotated_force_errors(Biased(0.01), structures, 3, silent)
    np.testing.assert_allclose(errors, np.full((4, 3), 10.0), atol=1e-9)


def test_a_force_that_stays_behind_is_seen() -> None:
    class Behind(Biased):
        def compute(
            self, structures: list[Structure], *, forces: bool = True, stress: bool = False
        ) -> list[Prediction]:
            return [Prediction(0.0, np.zeros(3), np.tile([1.0, 0, 0], (3, 1))) for _ in structures]

    structure = replace(small_structures(1)[0], forces=np.tile([1.0, 0, 0], (3, 1)))
    errors = rotated_force_errors(Behind(0.0), [structure], 20, silent)
    assert errors.std() > 100
    assert errors.max() <= 2000.0 + 1e-9


def test_bonds_and_their_collapse(tmp_path: Path) -> None:
    reference = mean_bonds(small_structures(20))
    assert set(reference) == {"O-H"}
    assert 0.9 < reference["O-H"] < 1.05
    samples = tmp_path / "samples.csv"
    rows = ["time_ps,O-H_min_angstrom,O-H_max_angstrom", "0.0,0.9,1.2", "0.1,0.9,1.46"]
    samples.write_text("\n".join(rows))
    assert collapse_time(samples, {"O-H": 0.96}) is None
    assert collapse_time(samples, {"O-H": 0.95}) == 0.1
    samples.write_text("\n".join([*rows[:2], "0.2,0.45,1.0"]))
    assert collapse_time(samples, {"O-H": 0.96}) == 0.2
    samples.write_text("\n".join([*rows[:2], "0.3,nan,1.0"]))
    assert collapse_time(samples, {"O-H": 0.96}) == 0.3


def test_the_width_of_a_walk_leaves_its_slope_out() -> None:
    times = np.linspace(0, 10, 101)
    assert walk_width(times, 3 * times + 1) == pytest.approx(0, abs=1e-9)
    noise = np.where(np.arange(101) % 2, 0.5, -0.5)
    assert walk_width(times, 3 * times + noise) == pytest.approx(0.5, rel=0.01)


def test_claims_are_judged_by_every_seed() -> None:
    row = {"mean": 0.0, "slopes": [0.1, -0.2], "collapsed": {}}
    found = {"nve w4a8": {"row": row, "collapses": {"0": None, "1": None}}}
    assert [claim.verdict for claim in _claims(found, 1000)] == ["not run", "not confirmed"]
    row["slopes"] = [0.1, -0.1]
    assert [claim.verdict for claim in _claims(found, 1000)] == ["not run", "surpassed"]
    assert [claim.verdict for claim in _claims(found, 999)] == ["not run", "not run"]
    found["nve w4a8"]["collapses"] = {"0": 12.5, "1": None}
    assert [claim.verdict for claim in _claims(found, 1000)] == ["not run", "not confirmed"]


def test_contenders_are_checked() -> None:
    with pytest.raises(ConfigError, match="no contender"):
        Dynamics.configured(variants="fp32,w4a8+fp32")
    with pytest.raises(ConfigError, match="steps"):
        Dynamics.configured(steps=150)
    with pytest.raises(ModelError, match="w4a9"):
        Dynamics.configured(variants="w4a9").stages()


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_any_models_from_runs_to_report(tmp_path: Path) -> None:
    given = {
        "variants": f"ethanol-fp32,{W8A8}+ethanol-fp32/4",
        "labelled": "ethanol-pbe",
        "runs": tmp_path / "runs",
        "results": tmp_path / "results",
    }
    experiment = Dynamics.configured(quick=True, **given)
    names = [stage.name for stage in experiment.stages()]
    alone = [f"{kind} ethanol-fp32" for kind in ("nve", "stability", "rotation")]
    pair = f"{W8A8}+ethanol-fp32/4"
    assert names == [*alone, f"nve {pair}"]
    first = experiment.stages()[0]
    assert 0 < (first.seconds_foreseen(trial=True) or 0) < 600
    experiment.run()
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["missing"] == []
    fp32 = report["data"]["nve ethanol-fp32"]["row"]
    assert len(fp32["slopes"]) == 2
    assert abs(fp32["mean"]) < 1
    assert report["data"]["stability ethanol-fp32"]["row"]["temperature"] > 200
    turned = report["data"]["rotation ethanol-fp32"]
    assert turned["spread_of_rotations"] < 0.01 * turned["mean"]
    drift, stability, rotations = report["tables"]
    assert [row[0] for row in drift["rows"]] == ["ethanol-fp32", pair]
    assert drift["rows"][0][4] == "0 of 2"
    assert len(stability["rows"]) == len(rotations["rows"]) == 1
    assert report["claims"] == []
    dates = [path.stat().st_mtime_ns for path in sorted((tmp_path / "results").iterdir())]
    Dynamics.configured(quick=True, **given).run()
    assert dates == [path.stat().st_mtime_ns for path in sorted((tmp_path / "results").iterdir())]


def test_models_come_from_the_ethanol_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIBIT_DATA", str(small_rmd17(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    stages = Dynamics.configured(variants="w4a8,w4a8+fp32/4").stages()
    assert [f"{s.kind} {s.name}" for s in stages][:2] == [
        "train rmd17-fp32-seed0", "quantize rmd17-w4a8-seed0"
    ]  # fmt: skip
    simulation = next(s for s in stages if s.name == "nve w4a8+fp32/4")
    assert {need.name for need in simulation.needs} == {"rmd17-fp32-seed0", "rmd17-w4a8-seed0"}
    assert simulation.waits_for is not None
