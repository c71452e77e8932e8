from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.experiments.small import small_rmd17
from tests.experiments.test_ethanol import configured
from tests.experiments.test_ethanol_table import RESULTS

from equibit.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, descriptions and made-up results in the working directory."""
    monkeypatch.setenv("EQUIBIT_DATA", str(small_rmd17(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    configured(tmp_path)
    results = tmp_path / "results" / "ethanol"
    results.mkdir(parents=True)
    for plain in RESULTS:
        cell = plain["cell"]
        name = f"{cell['labels']}-{cell['variant']}-seed{cell['seed']}"
        (results / f"{name}.json").write_text(json.dumps(plain))
    return tmp_path


COMMON = ["training=training.yaml", "fine_tuning=tuning.yaml"]


def test_the_table_alone_needs_no_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text("<!-- results-table -->\n<!-- /results-table -->\n")
    settings = [*COMMON, "labels=rmd17", "--seeds", "0", "--stages", "report"]
    assert main(["reproduce", "ethanol", *settings]) == 0
    assert "README.md" in capsys.readouterr().out
    assert "`naive-w8a8`" in (folder / "README.md").read_text()
    assert (folder / "results" / "ethanol" / "table.md").read_text().count("## Targets") == 1


def test_dry_run_lists_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    settings = [*COMMON, "recipes=w4a8", "overrides=optimization.epochs=3"]
    status = main(["reproduce", "ethanol", *settings, "--seeds", "0", "--dry-run", "--json"])
    assert status == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["stage"], r["model"]) for r in rows[:3]] == [
        ("train", "rmd17-fp32-seed0"),
        ("evaluate", "rmd17-fp32-seed0"),
        ("quantize", "rmd17-control-seed0"),
    ]
    assert {r["state"] for r in rows} == {"missing"}
    assert len(rows) == 12
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "ethanol", "--stages", "bake"], "--stages: no 'bake'"),
        (["reproduce", "ethanol", "--seeds", "one"], "seeds.0: Input should be a valid integer"),
        (["reproduce", "ethanol", "labels=qm9"], "labels.0: Input should be"),
        (["reproduce", "ethanol", "recipes=w4a9"], "no recipe 'w4a9'"),
        (["reproduce", "ethanol", "training=none.yaml", "--dry-run"], "none.yaml"),
        (["reproduce", "ethanol", "overrides=optimization.epoch=3", "--dry-run"], "epoch"),
        (["reproduce", "ethanol", "molecule"], "write key=value"),
        (["models", "ship", "--variants", "w4a8"], "rmd17-w4a8-seed0 cannot be shipped"),
        (["models", "ship", "--variants", ","], "--variants names nothing"),
        (["models", "card", "w4a8.safetensors", "none.json"], "none.json is not an evaluation"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
