"""Energies of QM9 and the transfer to forces, whole, on toys that take seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.experiments.small import NETWORK, small_qm9, small_rmd17

from equibit.experiments.qm9 import FP32, Qm9
from equibit.experiments.report import judged_at_most
from equibit.experiments.stages import COMPILED_SHARE_OF_ENERGIES, Train, seconds_left
from equibit.experiments.transfer import Transfer
from equibit.models.files import load_network
from equibit.storage.checksum import file_sha256
from equibit.structures import ConfigError

ENERGIES = {"energy": 1.0, "forces": 0.0}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Data and settings; QM9's table is made, and the transfer from its network."""
    root = tmp_path_factory.mktemp("qm9")
    small_rmd17(small_qm9(root / "data"), molecule="aspirin")
    training, brief, tuning = (root / f"{name}.yaml" for name in ("training", "brief", "tuning"))
    described = {
        "data": {"dataset": "qm9"},
        "network": NETWORK,
        "loss": ENERGIES,
        "optimization": {"epochs": 2, "batch_size": 5},
        "run": {"validate_every": 1},
    }
    training.write_text(yaml.safe_dump(described))
    brief.write_text(
        yaml.safe_dump({key: described[key] for key in ("data", "optimization", "run")})
    )
    tuning.write_text("epochs: 1\nscalar_epochs: 0\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("EQUIBIT_DATA", str(root / "data"))
    patch.chdir(root)  # where no page of the documentation could be filled with toys
    common = {"fine_tuning": tuning, "validation": 4, "variants": "w8a8", "rotations": 2,
              "rotated_structures": 2}  # fmt: skip
    given = {
        "qm9": {**common, "training": training},
        "transfer": {
            **common,
            "validation": 2,
            "variants": "pretrained-w8a8,scratch-w8a8",
            "training": brief,
            "qm9": f"training={training},validation=4",
        },
    }
    for part, experiment in (("qm9", Qm9), ("transfer", Transfer)):
        left = seconds_left(experiment.configured(**given[part]).stages())
        assert any(isinstance(stage, Train) for stage in left), "foreseen before anything is there"
        experiment.configured(**given[part]).run()
    yield given
    patch.undo()


def report_of(name: str) -> dict[str, Any]:
    return dict(json.loads(Path(f"results/{name}.json").read_text()))


def test_qm9_is_learned_and_judged_by_energies(toys: dict[str, Any]) -> None:
    report = report_of("qm9")
    assert report["missing"] == []
    (table,) = report["tables"]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert list(rows) == ["`fp32`", "`control`", "`w8a8`"]
    error = {
        name: report["data"][name]["energy_mae"]["mean"] for name in ("fp32", "control", "w8a8")
    }
    ratio = error["w8a8"] / error["fp32"]
    assert float(rows["`w8a8`"]["over FP32"]) == pytest.approx(ratio, rel=0.01)
    assert rows["`fp32`"]["over FP32"] == "–"
    assert report["data"]["w8a8"]["forces_mae"] is None, "there are no labels of forces"
    assert report["data"]["w8a8"]["lee_mean"]["mean"] >= 0
    verdicts = {claim["text"]: claim["verdict"] for claim in report["claims"]}
    assert verdicts["energy MAE of FP32 on QM9"] == judged_at_most(error["fp32"], 8.5)
    assert "40 training, 4 validation and 5 test molecules of qm9: 50" in report["protocol"]
    assert Path("results/qm9.png").read_bytes().startswith(b"\x89PNG")


def test_qm9_networks_learned_no_forces(toys: dict[str, Any]) -> None:
    experiment = Qm9.configured(**toys["qm9"])
    for variant in (FP32, *experiment.variants()):
        path = experiment.folder(variant, 0)
        loss = yaml.safe_load((path / "config.yaml").read_text())["loss"]
        assert (loss["energy"], loss["forces"]) == (1.0, 0.0)
        assert "forces" not in (path / "metrics.csv").read_text().splitlines()[0]


def test_the_transfer_begins_with_the_network_of_qm9(toys: dict[str, Any]) -> None:
    report = report_of("transfer")
    assert report["missing"] == []
    origin = Path("runs/qm9/qm9-fp32-seed0/model.safetensors")
    runs = Path("runs/transfer")
    summary = json.loads((runs / "rmd17-fp32-pretrained-seed0/summary.json").read_text())
    assert summary["training"]["parent"]["sha256"] == file_sha256(origin)
    scratch = json.loads((runs / "rmd17-fp32-scratch-seed0/summary.json").read_text())
    assert "parent" not in scratch["training"]
    descriptions = [
        yaml.safe_load((runs / f"rmd17-fp32-{name}-seed0/config.yaml").read_text())
        for name in ("pretrained", "scratch")
    ]
    assert descriptions[0].pop("start") == str(origin)
    assert descriptions[1].pop("start") is None
    for one in descriptions:
        one["run"].pop("output")
    assert descriptions[0] == descriptions[1], "the same training but for where it begins"
    assert descriptions[0]["loss"]["forces"] > 0
    assert load_network(runs / "rmd17-pretrained-w8a8-seed0")[0].recipe.name == "w8a8"


def test_the_transfer_sets_both_origins_side_by_side(toys: dict[str, Any]) -> None:
    report = report_of("transfer")
    (table,) = report["tables"]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    forms = ("pretrained-control", "pretrained-w8a8", "scratch-control", "scratch-w8a8")
    assert set(rows) == {f"`{n}`" for n in ("fp32-pretrained", "fp32-scratch", *forms)}
    force = {name: report["data"][name]["forces_mae"]["mean"] for name in report["data"]}
    ratio = force["fp32-pretrained"] / force["fp32-scratch"]
    assert float(rows["`fp32-pretrained`"]["forces over from scratch"]) == pytest.approx(
        ratio, rel=0.01
    )
    ratio = force["pretrained-w8a8"] / force["fp32-pretrained"]
    assert float(rows["`pretrained-w8a8`"]["forces over FP32"]) == pytest.approx(ratio, rel=0.01)
    verdicts = [claim["verdict"] for claim in report["claims"]]
    assert verdicts[0] == judged_at_most(force["fp32-pretrained"], 35.0)


def test_a_new_network_of_qm9_asks_for_a_new_transfer(toys: dict[str, Any]) -> None:
    """What begins with it and what is made of that, and nothing from scratch."""
    origin = Path("runs/qm9/qm9-fp32-seed0/model.safetensors")
    kept = origin.read_bytes()
    origin.write_bytes(Path("runs/qm9/qm9-control-seed0/model.safetensors").read_bytes())
    try:
        undone = {s.name for s in Transfer.configured(**toys["transfer"]).stages() if not s.done}
    finally:
        origin.write_bytes(kept)
    assert undone == {
        f"rmd17-{name}-seed0" for name in ("fp32-pretrained", "pretrained-control", "pretrained-w8a8")
    }  # fmt: skip
    assert all(stage.done for stage in Transfer.configured(**toys["transfer"]).stages())


def test_nothing_is_claimed_of_what_was_not_run(toys: dict[str, Any], tmp_path: Path) -> None:
    for part, experiment in (("qm9", Qm9), ("transfer", Transfer)):
        report = experiment.configured(
            **toys[part], runs=tmp_path / "runs", results=tmp_path / part
        ).report()
        assert {claim.verdict for claim in report.claims} == {"not run"}
        assert {claim.measured for claim in report.claims} == {"not run"}
        cells = [cell for row in report.tables[0].rows for cell in row[2:]]
        assert set(cells) <= {"not run", "–"}


def test_a_misspelt_setting_of_qm9_is_named() -> None:
    with pytest.raises(ConfigError, match="write qm9=key=value"):
        Transfer.configured(qm9="quick").stages()
    with pytest.raises(ConfigError, match="no such key"):
        Transfer.configured(qm9="trainin=x.yaml").stages()


def test_quick_forms_leave_the_full_ones_alone() -> None:
    for experiment in (Qm9, Transfer):
        for stage in experiment.configured(quick=True).stages():
            assert "quick" in stage.output.parts


def test_times_foreseen_count_that_the_run_is_compiled(
    toys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equibit.experiments.stages.eager_step_seconds", lambda *_: 1.0)
    training = Qm9.configured(**toys["qm9"], runs=tmp_path).training(0, ())
    run = training.run.model_copy(update={"compile": "on"})
    plain, compiled = Train(training), Train(training.model_copy(update={"run": run}))
    assert plain.seconds_foreseen(trial=True) == pytest.approx(2 * 40 / 5)
    seconds = COMPILED_SHARE_OF_ENERGIES * 2 * 40 / 5
    assert compiled.seconds_foreseen(trial=True) == pytest.approx(seconds)
