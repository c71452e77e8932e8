"""Stages that are skipped, wait and go on, and the reports that tell what they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from equibit.cli.main import main
from equibit.evaluation.batches import Progress
from equibit.experiments import registry
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.registry import Entry, find_experiment
from equibit.experiments.report import Claim, Report, Table, filled, places_of, write_report
from equibit.experiments.stages import Measure, run_stages
from equibit.structures import ConfigError


class ToyConfig(ExperimentConfig):
    factor: int = 2
    names: tuple[str, ...] = ("a", "b")


class Toy(Experiment[ToyConfig]):
    """Two stages, the second of which reads the first."""

    name = "toy"
    config_type = ToyConfig
    quick_settings: ClassVar[Mapping[str, Any]] = {"factor": 1}

    def stages(self) -> list[Measure]:
        base = self.config.results
        first = Measure("first", base / "first.json", {"factor": self.config.factor}, self.first)
        second = Measure(
            "second", base / "second.json", {}, self.second, inputs=[first.output], needs=[first]
        )
        return [first, second]

    def first(self, progress: Progress) -> dict[str, float]:
        return {"value": 3.0 * self.config.factor}

    def second(self, progress: Progress) -> float:
        if (self.config.runs / "broken").exists():
            raise ConfigError("broken off")
        return float(self.stages()[0].result()["value"] + 1)

    def report(self) -> Report:
        answer = self.stages()[1].result()
        return Report(
            name=self.name,
            title="Toy",
            quick=self.config.quick,
            protocol="Adds one.",
            command=self.command(),
            seeds=self.config.seeds,
            missing=self.unfinished(),
            tables=(Table("Answers", ("", "answer"), (("toy", str(answer or "not run")),)),),
            claims=(Claim("it adds one", "P1", "7", str(answer), "confirmed", "it does"),),
            data={"answer": answer},
            seconds=self.seconds(),
            places=places_of([json.loads(s.output.read_text())["provenance"]
                              for s in self.stages() if s.done]),
            draw=lambda figure: figure.subplots().bar(["toy"], [answer or 0]),
        )  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Toy]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.EXPERIMENTS, "toy", Entry(f"{__name__}:Toy", "Adds one."))
    return Toy.configured


def test_stages_run_in_order_and_once(toy: Callable[..., Toy]) -> None:
    said: list[str] = []
    toy().run(say=said.append)
    assert said[0] == "1/2 measure first"
    assert [stage.result() for stage in toy().stages()] == [{"value": 6.0}, 7.0]
    said.clear()
    toy().run(say=said.append)
    assert said == ["1/2 measure first: done", "2/2 measure second: done"]


def test_what_a_stage_was_asked_is_part_of_its_answer(toy: Callable[..., Toy]) -> None:
    toy().run()
    other = toy(factor=5)
    assert [stage.done for stage in other.stages()] == [False, False]
    other.run()
    assert other.stages()[1].result() == 16.0


def test_a_changed_input_asks_for_a_new_answer(toy: Callable[..., Toy]) -> None:
    toy().run()
    first, second = toy().stages()
    kept = json.loads(first.output.read_text())
    first.output.write_text(json.dumps({**kept, "result": {"value": 1.0}}))
    assert (first.done, second.done) == (True, False)


def test_after_a_failure_what_is_done_stays(toy: Callable[..., Toy]) -> None:
    broken = toy().config.runs / "broken"
    broken.mkdir(parents=True)
    with pytest.raises(ConfigError, match="broken off"):
        toy().run()
    first, second = toy().stages()
    assert (first.done, second.done) == (True, False)
    broken.rmdir()
    said: list[str] = []
    toy().run(say=said.append)
    assert said[:2] == ["1/2 measure first: done", "2/2 measure second"]


def test_a_stage_without_what_it_needs_waits(toy: Callable[..., Toy]) -> None:
    said: list[str] = []
    run_stages(toy().stages()[1:], say=said.append)
    assert said == ["1/1 measure second: waits for first"]


def test_a_damaged_answer_is_measured_again(toy: Callable[..., Toy]) -> None:
    toy().run()
    first = toy().stages()[0]
    for text in ("", "[]", "{}"):
        first.output.write_text(text)
        assert not first.done


def test_the_command_runs_and_writes_its_report(
    toy: Callable[..., Toy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "reproduction.md"
    page.parent.mkdir()
    page.write_text("<!-- toy -->\n<!-- /toy -->\n<!-- toy quick: x -->\n<!-- /toy quick -->\n")
    assert main(["reproduce", "toy", "factor=4", "names=c", "--seeds", "1,2"]) == 0
    capsys.readouterr()
    record = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert record["data"] == {"answer": 13.0}
    assert record["command"] == "equibit reproduce toy --seeds 1,2 factor=4 names=c"
    assert record["missing"] == []
    assert record["places"]["threads"]
    assert record["claims"][0]["verdict"] == "confirmed"
    assert (tmp_path / "results" / "toy.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "results" / "toy.md").read_text()
    assert "| toy | 13.0 |" in text
    before, _, after = page.read_text().partition("<!-- /toy -->")
    assert text in before
    assert "Toy" not in after

    assert main(["reproduce", "toy", "--quick"]) == 0
    quick = (tmp_path / "results" / "quick" / "toy.md").read_text()
    assert "Quick run" in quick
    assert "| toy | 4.0 |" in quick
    assert quick in page.read_text().partition("<!-- /toy -->")[2]
    assert (tmp_path / "results" / "toy.md").read_text() == text


def test_a_dry_run_lists_and_does_nothing(
    toy: Callable[..., Toy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "toy", "--dry-run", "--json", "--stages", "measure"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["state"]) for row in rows] == [
        ("first", "missing"), ("second", "missing")
    ]  # fmt: skip
    assert not (tmp_path / "results").exists()


def test_a_table_that_was_not_run_says_so(toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy().run(["report"])
    text = (tmp_path / "results" / "toy.md").read_text()
    assert "Not run (2 stages): first, second." in text
    assert "Nothing was run yet." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toi"], "did you mean 'toy'"),
        (["toy", "--stages", "bake"], "--stages: no 'bake'; known are measure, report"),
        (["toy", "--seeds", "one"], "seeds.0"),
        (["toy", "facto=3"], "did you mean factor"),
        (["toy", "factor"], "write key=value"),
    ],
)
def test_mistakes_are_one_line(
    toy: Callable[..., Toy], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["reproduce", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(registry.EXPERIMENTS)


@pytest.mark.parametrize("name", list(registry.EXPERIMENTS))
def test_every_experiment_has_stages_in_an_order_that_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for quick in (False, True):
        experiment = find_experiment(name).configured(quick=quick)
        seen: set[Path] = set()
        for stage in experiment.stages():
            assert {needed.output for needed in stage.needs} <= seen
            assert stage.output not in seen
            seen.add(stage.output)
        assert ("quick" in str(experiment.config.results)) == quick
        assert experiment.command() == f"equibit reproduce {name}" + " --quick" * quick


def test_marked_places_are_filled_and_others_left() -> None:
    page = "a\n<!-- x: by -->\nold\n<!-- /x -->\n<!-- x quick -->\nq\n<!-- /x quick -->\n"
    new = filled(page, "x", "new")
    assert new == "a\n<!-- x: by -->\n\nnew\n<!-- /x -->\n<!-- x quick -->\nq\n<!-- /x quick -->\n"
    assert filled(page, "y", "new") == page


def test_a_report_without_picture_writes_none(tmp_path: Path) -> None:
    report = Report("x", "X", False, "p", "c", (0,), (), (), (), {}, 0.0, {})
    assert {path.name for path in write_report(report, tmp_path / "x")} == {"x.json", "x.md"}
