from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.experiments.small import small_data, small_model

from equibit.experiments import demo
from equibit.experiments.demo import DemoConfig, run_demo
from equibit.structures import ConfigError, DatasetError, ModelError

pytest.importorskip("jinja2")


@pytest.fixture
def config(tmp_path: Path) -> DemoConfig:
    return DemoConfig(
        parent=str(small_model(tmp_path / "parent.safetensors")),
        dataset=str(small_data(tmp_path / "toy.xyz")),
        epochs=1,
        scalar_epochs=0,
        rotations=2,
        rotated_structures=2,
        output=tmp_path / "demo",
    )


def test_the_whole_way_and_nothing_twice(
    config: DemoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    result = run_demo(config, say=said.append)
    assert [line[:3] for line in said] == ["1/2", "2/2"]
    plain = json.loads(result.evaluation.read_text())
    assert plain["model"]["info"]["recipe"] == "w4a8"
    assert plain["parent"]["info"]["name"] == "small"
    assert plain["data"]["n_structures"] == 4
    assert "toy-w4a8" in result.report.read_text()
    assert len(result.summary) == 5
    shown = f"{plain['model']['errors']['forces']['mae']:.3g}"
    assert shown in result.summary[1]

    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr(demo, "quantize", forbidden)
    monkeypatch.setattr(demo, "evaluate_model", forbidden)
    again = run_demo(config, say=said.append)
    assert again.summary == result.summary
    assert "is trained" in said[2]
    assert "is judged" in said[3]


def test_it_goes_on_after_an_interrupt_between_the_steps(
    config: DemoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate_model", stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(config)
    assert not (config.output / "evaluation.json").exists()
    monkeypatch.setattr(demo, "quantize", stop)
    assert run_demo(config).report.is_file()


def test_a_new_parent_means_a_new_model(config: DemoConfig) -> None:
    config = config.model_copy(update={"epochs": 0})
    first = run_demo(config)
    before = first.model.read_bytes()
    os.utime(config.parent)
    assert run_demo(config).model.read_bytes() == before
    small_model(Path(config.parent), seed=1)
    again = run_demo(config)
    assert again.model.read_bytes() != before
    assert again.summary != first.summary


def test_another_run_in_the_folder_is_refused(config: DemoConfig) -> None:
    run_demo(config.model_copy(update={"epochs": 0}))
    with pytest.raises(ConfigError, match="another configuration"):
        run_demo(config)


def test_missing_parent_and_data_are_named(config: DemoConfig) -> None:
    with pytest.raises(ModelError, match="no-parent"):
        run_demo(config.model_copy(update={"parent": "no-parent"}))
    with pytest.raises(DatasetError, match="no-data"):
        run_demo(config.model_copy(update={"dataset": "no-data"}))
