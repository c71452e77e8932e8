"""``equibit quantize`` from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.networks.test_equivariant_transformer import tiny_network
from tests.training.test_run import stop_after
from tests.training.toy import data_file, waters

import equibit.training.qat as qat_module
from equibit.cli.main import main
from equibit.models.files import load_network, save_model
from equibit.quantization.recipes import Recipe
from equibit.structures.formats import write_structures

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def parent(tmp_path: Path) -> str:
    path = tmp_path / "parent.safetensors"
    save_model(path, tiny_network(elements=(1, 8), layers=1), name="parent", training={})
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(data_file(tmp_path))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_calibration_alone(parent: str, data: str, output: Path, capsys: Capture) -> None:
    command = ["quantize", parent, "--data", data, "-o", str(output), "--epochs", "0"]
    assert main(command) == 0
    text = capsys.readouterr().out.replace("\n", "")
    assert f"equibit evaluate {output}/model.safetensors" in text
    assert load_network(output)[0].recipe.name == "w4a8"


def test_fine_tuning_reports_json(parent: str, data: str, output: Path, capsys: Capture) -> None:
    command = ["quantize", parent, "--data", data, "-o", str(output), "--json"]
    options = ["--recipe", "w8a8", "--epochs", "2", "--scalar-epochs", "1"]
    assert main([*command, *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["kilobytes"] == pytest.approx(
        (output / "model.safetensors").stat().st_size / 1000, abs=0.06
    )
    assert figures["val_loss"] > 0
    header = load_network(output)[1]
    assert header["training"]["recipe"] == "w8a8"
    assert header["training"]["dataset"] == "water"


def test_data_without_forces(parent: str, tmp_path: Path, output: Path, capsys: Capture) -> None:
    path = tmp_path / "bare.xyz"
    write_structures(path, [replace(s, forces=None) for s in waters(30)])
    command = ["quantize", parent, "--data", str(path), "-o", str(output), "--epochs", "1"]
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert figures["val_energy_mae_meV"] > 0
    assert "val_forces_mae_meV_A" not in figures
    assert "no labels of forces: energies alone are learned" in captured.err
    assert yaml.safe_load((output / "config.yaml").read_text())["loss"]["forces"] == 0


def test_the_control(parent: str, data: str, output: Path, capsys: Capture) -> None:
    command = ["quantize", parent, "--data", data, "-o", str(output), "--json"]
    assert main([*command, "--recipe", "fp32", "--epochs", "1"]) == 0
    assert load_network(output)[0].recipe is None


def test_a_recipe_of_ones_own(
    parent: str, data: str, output: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(Recipe(name="mine", scalars=None).to_json())
    command = ["quantize", parent, "--data", data, "-o", str(output), "--epochs", "0"]
    assert main([*command, "--recipe", str(path)]) == 0
    assert load_network(output)[0].recipe.name == "mine"
    for content, message in ((b'{"bits": 3}', "bits"), (b"{", "JSON"), (b"\xff\xfe", "mine.json")):
        path.write_bytes(content)
        assert main([*command, "--recipe", str(path)]) == 1
        assert message in capsys.readouterr().err
    path.unlink()
    assert main([*command, "--recipe", str(path)]) == 1
    assert "mine.json: No such file" in capsys.readouterr().err


def test_distillation(parent: str, output: Path, tmp_path: Path, capsys: Capture) -> None:
    start = tmp_path / "start.xyz"
    write_structures(start, waters(1))
    command = ["quantize", parent, "--distill", str(start), "-o", str(output), "--epochs", "0"]
    options = ["--samples", "20", "--temperature", "20", "--json"]
    assert main([*command, *options]) == 0
    assert (output / "distilled.extxyz").exists()
    assert load_network(output)[1]["training"]["labels"] == "the FP32 parent parent"


@pytest.mark.parametrize("source", ["data", "distill"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_dry_run_writes_nothing(
    source: str, flags: list[str], parent: str, data: str, output: Path, capsys: Capture
) -> None:
    before = sorted(output.parent.rglob("*"))
    command = ["quantize", parent, f"--{source}", data, "-o", str(output), "--dry-run", *flags]
    assert main(command) == 0
    assert sorted(output.parent.rglob("*")) == before
    text = capsys.readouterr().out
    if flags:
        assert json.loads(text)["recipe"] == "w4a8"
    else:
        assert "w4a8" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "w4a9"], "did you mean 'w4a8'"),
        (["--epochs", "-1"], "epochs: Input should be greater than or equal to 0"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--threads", "0"], "run.threads"),
        (["--lee-weight", "-2"], "lee_weight"),
        (["--data-root", "x", "--distill", "y"], "either --data or --distill"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_mistakes_are_one_line_and_status_1(
    options: list[str],
    message: str,
    flags: list[str],
    parent: str,
    data: str,
    output: Path,
    capsys: Capture,
) -> None:
    command = ["quantize", parent, "--data", data, "-o", str(output), *options, *flags]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not output.exists()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_unusable_parents_are_named(
    flags: list[str], parent: str, data: str, output: Path, tmp_path: Path, capsys: Capture
) -> None:
    rest = ["--data", data, "-o", str(output), *flags]
    assert main(["quantize", "nowhere.safetensors", *rest]) == 1
    assert "there is no model nowhere.safetensors" in capsys.readouterr().err
    assert main(["quantize", data, *rest]) == 1
    assert "water.xyz" in capsys.readouterr().err
    assert main(["quantize", parent, "--data", data, "-o", str(tmp_path / "q"), "--epochs=0"]) == 0
    capsys.readouterr()
    for recipe in ("w8a8", "fp32"):
        assert main(["quantize", str(tmp_path / "q"), "--recipe", recipe, *rest]) == 1
        assert "already quantised" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_unusable_sampling_is_named(
    flags: list[str], parent: str, output: Path, capsys: Capture
) -> None:
    rest = ["-o", str(output), *flags]
    assert main(["quantize", parent, "--distill", "none.xyz", *rest]) == 1
    assert "none.xyz" in capsys.readouterr().err
    assert main(["quantize", parent, "--distill", "none.xyz", "--samples", "3", *rest]) == 1
    assert "samples: Input should be greater than or equal to 20" in capsys.readouterr().err
    assert main(["quantize", parent, *rest]) == 1
    assert "either --data or --distill" in capsys.readouterr().err
    assert not output.exists()


def test_ctrl_c_is_status_130_and_the_run_goes_on(
    parent: str, data: str, output: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["quantize", parent, "--data", data, "-o", str(output), "--epochs", "2", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(qat_module, "fit", stop_after(1, KeyboardInterrupt()))
        assert main(command) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (output / "model.safetensors").exists()
    assert main(command) == 0
    assert load_network(output)[0].recipe is not None


def test_another_recipe_needs_a_restart(
    parent: str, data: str, output: Path, capsys: Capture
) -> None:
    command = ["quantize", parent, "--data", data, "-o", str(output), "--epochs", "0"]
    assert main(command) == 0
    assert main([*command, "--recipe", "w8a8"]) == 1
    assert "--restart" in capsys.readouterr().err
    assert load_network(output)[0].recipe.name == "w4a8"
    assert main([*command, "--recipe", "w8a8", "--restart"]) == 0
    assert load_network(output)[0].recipe.name == "w8a8"


def test_help_names_the_options(capsys: Capture) -> None:
    assert main(["quantize", "--help"]) == 0
    output = capsys.readouterr().out
    for word in ("--recipe", "--distill", "--lee-weight", "--dry-run", "--restart", "parent"):
        assert word in output
