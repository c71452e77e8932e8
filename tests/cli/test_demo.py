from __future__ import annotations

import json
from pathlib import Path

import pytest

from equibit.cli.main import main
from equibit.experiments import demo
from equibit.experiments.demo import DemoConfig, DemoResult

pytest.importorskip("jinja2")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[DemoConfig, bool]]:
    made: list[tuple[DemoConfig, bool]] = []

    def fake(config: DemoConfig, *, resume: bool, say: object, progress: object) -> DemoResult:
        made.append((config, resume))
        files = [config.output / name for name in ("model", "evaluation.json", "report.html")]
        return DemoResult(*files, summary=("energy", "forces", "a", "b", "c"), seconds=61.2)

    monkeypatch.setattr(demo, "run_demo", fake)
    return made


def test_it_says_where_the_report_is(
    calls: list[tuple[DemoConfig, bool]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["demo", "--output", str(tmp_path), "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "report.html") in shown
    assert shown.index("energy") < shown.index("forces") < shown.index("report")
    (config, resume) = calls[0]
    assert (config.epochs, config.scalar_epochs, resume) == (1, 1, True)


def test_json_and_restart(
    calls: list[tuple[DemoConfig, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json", "--restart"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 61.2
    assert calls[0] == (DemoConfig(), False)


def test_a_missing_parent_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--parent", "ethanol-pbe-fp64"]) == 1
    assert "no model ethanol-pbe-fp64" in capsys.readouterr().err
