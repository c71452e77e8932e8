"""The ethanol experiment, whole, on a toy that takes seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.experiments.small import NETWORK, small_rmd17

from equibit.experiments import stages as stages_module
from equibit.experiments.cards import write_card
from equibit.experiments.ethanol import Cell, Ethanol, EthanolConfig
from equibit.experiments.ethanol_table import make_table, read_results
from equibit.experiments.shipping import ship
from equibit.experiments.stages import seconds_left
from equibit.models import load_potential
from equibit.storage.checksum import file_sha256
from equibit.structures import ConfigError, FileFormatError


def configured(root: Path, **changes: object) -> EthanolConfig:
    training, tuning = root / "training.yaml", root / "tuning.yaml"
    training.write_text(
        yaml.safe_dump(
            {
                "data": {"dataset": "rmd17/ethanol"},
                "network": NETWORK,
                "optimization": {"epochs": 1},
                "run": {"validate_every": 1},
            }
        )
    )
    tuning.write_text("epochs: 1\nscalar_epochs: 0\n")
    settings = {
        "seeds": (0,),
        "labels": ("rmd17",),
        "recipes": ("w4a8", "naive-w8a8"),
        "training": training,
        "fine_tuning": tuning,
        "rotations": 2,
        "rotated_structures": 2,
        "runs": root / "runs",
        "results": root / "results",
    }
    return EthanolConfig.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EthanolConfig]:
    """All stages of one seed, done once for this module."""
    root = tmp_path_factory.mktemp("ethanol")
    patch = pytest.MonkeyPatch()
    patch.setenv("EQUIBIT_DATA", str(small_rmd17(root / "data")))
    config = configured(root)
    Ethanol(config).run(("train", "quantize", "evaluate"))
    yield config
    patch.undo()


def test_every_cell_has_its_figures(finished: EthanolConfig) -> None:
    experiment = Ethanol(finished)
    assert all(stage.done for stage in experiment.stages())
    results = {r["cell"]["variant"]: r for r in read_results(finished.results)}
    assert set(results) == {"fp32", "control", "w4a8", "naive-w8a8"}
    low = results["w4a8"]
    assert low["parent"]["info"]["name"] == "rmd17-fp32-seed0"
    assert low["data"] | {"elements": None} == {
        "dataset": "rmd17/ethanol", "split": "1", "subset": "test", "n_structures": 10,
        "n_atoms": 30, "elements": None, "has_energies": True, "has_forces": True,
    }  # fmt: skip
    assert low["settings"]["fine_tuning"]["epochs"] == 1
    assert "energy_errors" not in low["model"]["errors"]
    assert low["command"].startswith("equibit reproduce ethanol --seeds 0")
    assert results["control"]["model"]["info"]["recipe"] == "fp32"
    assert low["floors"]["FP64 model"]["forces"]["maximum"] < 1e-8
    assert results["naive-w8a8"]["equivariance"]["forces"]["mean"] > 1e-4


def test_nothing_is_done_twice(finished: EthanolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("done already")

    for name in ("train", "quantize", "evaluate_model"):
        monkeypatch.setattr(stages_module, name, forbidden)
    said: list[str] = []
    Ethanol(finished).run(("train", "quantize", "evaluate"), say=said.append)
    assert len(said) == 8
    assert all(line.endswith(": done") for line in said)


def test_what_has_no_parent_yet_waits(finished: EthanolConfig) -> None:
    config = finished.model_copy(update={"seeds": (7,)})
    said: list[str] = []
    Ethanol(config).run(("quantize", "evaluate"), say=said.append)
    assert said[0].endswith("evaluate rmd17-fp32-seed7: waits for rmd17-fp32-seed7")
    assert said[1].endswith("quantize rmd17-control-seed7: waits for rmd17-fp32-seed7")
    assert not Ethanol(config).result(Cell("rmd17", "fp32", 7)).exists()


def test_other_settings_in_the_same_folder_are_refused(finished: EthanolConfig) -> None:
    config = finished.model_copy(update={"overrides": ("optimization.epochs=2",)})
    with pytest.raises(ConfigError, match="another configuration"):
        Ethanol(config).run(("train",))


def test_figures_of_another_model_file_do_not_count(finished: EthanolConfig) -> None:
    experiment = Ethanol(finished)
    result = experiment.result(Cell("rmd17", "w4a8", 0))
    original = result.read_text()
    try:
        result.write_text(json.dumps({**json.loads(original), "model_sha256": "0" * 64}))
        missing = [(s.kind, s.name) for s in experiment.stages() if not s.done]
        assert missing == [("evaluate", "rmd17-w4a8-seed0")]
    finally:
        result.write_text(original)


def test_a_new_parent_asks_for_new_children(finished: EthanolConfig) -> None:
    experiment = Ethanol(finished)
    parent = experiment.model(Cell("rmd17", "fp32", 0))
    original = parent.read_bytes()
    try:
        parent.write_bytes(experiment.model(Cell("rmd17", "control", 0)).read_bytes())
        missing = {(s.kind, s.name) for s in experiment.stages() if not s.done}
        assert ("quantize", "rmd17-w4a8-seed0") in missing
        assert ("evaluate", "rmd17-fp32-seed0") in missing
    finally:
        parent.write_bytes(original)


def test_estimates_are_for_what_is_missing(finished: EthanolConfig) -> None:
    config = finished.model_copy(update={"seeds": (0, 1)})
    experiment = Ethanol(config)
    stages = experiment.stages()
    left = seconds_left(stages)
    assert all(stage.name.endswith("seed1") for stage in left)
    assert len(left) == 8
    assert all(seconds > 0 for seconds in left.values())


def test_a_run_under_way_tells_its_pace(finished: EthanolConfig, tmp_path: Path) -> None:
    config = configured(tmp_path, overrides=("optimization.epochs=100",), recipes=())
    experiment = Ethanol(config)
    folder = experiment.model(Cell("rmd17", "fp32", 0)).parent
    folder.mkdir(parents=True)
    for name, text, date in (("config.yaml", "", 1000), ("metrics.csv", "epoch\n" * 26, 1100)):
        (folder / name).write_text(text)
        os.utime(folder / name, (date, date))
    stages = [stage for stage in experiment.stages() if stage.kind == "train"]
    assert stages[0].steps() == (25, 100)
    assert seconds_left(stages) == {stages[0]: pytest.approx(300.0)}


def test_md17_labels_are_another_data_set_and_another_row(finished: EthanolConfig) -> None:
    experiment = Ethanol(finished)
    cell = Cell("md17", "fp32", 0)
    assert experiment.training(cell).data.dataset == "md17/ethanol"
    assert experiment.model(cell) != experiment.model(Cell("rmd17", "fp32", 0))
    table = make_table(read_results(finished.results), ("rmd17", "md17"), finished.recipes)
    row = table.row("md17", "w4a8")
    assert row is not None
    assert row.metrics["forces_mae"] is None


def test_shipped_models_have_names_and_cards(finished: EthanolConfig, tmp_path: Path) -> None:
    written = ship(Ethanol(finished), tmp_path, seed=0, variants=["fp32", "w4a8"])
    assert [p.name for p in written] == [
        f"ethanol-{recipe}{suffix}"
        for recipe in ("fp32", "w4a8")
        for suffix in (".safetensors", ".md", ".json")
    ]
    assert load_potential(written[3]).info.name == "ethanol-w4a8"
    card = written[4].read_text()
    result = json.loads(Ethanol(finished).result(Cell("rmd17", "w4a8", 0)).read_text())
    for text in (
        "# ethanol-w4a8",
        "rmd17/ethanol",
        "| seed | 0 |",
        f"{result['model']['errors']['forces']['mae']:.3g} meV/Å",
        "equibit reproduce ethanol --seeds 0",
        "8-bit activations",
        "Licence: MIT",
    ):
        assert text in card
    figures = json.loads(written[5].read_text())
    assert figures["model_sha256"] == file_sha256(written[3])
    errors = result["model"]["errors"]
    assert figures["figures"]["forces_mae_mev_a"] == errors["forces"]["mae"]
    assert figures["figures"]["energy_mae_mev"] == errors["energy"]["mae"]


def test_what_was_not_run_cannot_be_shipped(finished: EthanolConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rmd17-w8a8-seed0 cannot be shipped"):
        ship(Ethanol(finished), tmp_path, seed=0, variants=["w4a8", "w8a8"])
    assert os.listdir(tmp_path) == []


def test_a_card_needs_figures_of_its_own_model(finished: EthanolConfig, tmp_path: Path) -> None:
    experiment = Ethanol(finished)
    cell = Cell("rmd17", "w4a8", 0)
    other = json.loads(experiment.result(Cell("rmd17", "control", 0)).read_text())
    path = tmp_path / "card.md"
    with pytest.raises(ConfigError, match="another model"):
        write_card(experiment.model(cell), other, path=path)
    with pytest.raises(ConfigError, match="no evaluation"):
        write_card(experiment.model(cell), {}, path=path)
    assert not path.exists()


def test_foreign_files_among_results_are_named(finished: EthanolConfig, tmp_path: Path) -> None:
    (tmp_path / "x-seed0.json").write_text("[]")
    with pytest.raises(FileFormatError, match=r"x-seed0\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "epochs: many", "wobble: 1"])
def test_a_bad_fine_tuning_is_named(finished: EthanolConfig, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    experiment = Ethanol(finished.model_copy(update={"fine_tuning": path}))
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        experiment.stages()
