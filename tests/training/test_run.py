"""Training runs from data to model: they learn, resume exactly, and lose nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from tests.networks.test_equivariant_transformer import tiny_network
from tests.training.toy import config, data_file, label, mixed, tree, waters

import equibit.training.run as run_module
from equibit.models.files import load_network, load_potential, save_model
from equibit.networks.potential import TorchPotential
from equibit.quantization.convert import freeze_, quantize_
from equibit.storage import WriteError
from equibit.structures import ConfigError, DatasetError, FileFormatError, ModelError, Structure
from equibit.structures.formats.npz import write_npz
from equibit.structures.packed import PackedStructures
from equibit.training.checkpoints import ContainerCheckpointIO
from equibit.training.config import DataConfig, RunConfig, TrainingConfig
from equibit.training.fit import Fit, fit
from equibit.training.run import (
    TrainingResult,
    check_folder,
    compile_pays,
    energy_errors,
    load_training_structures,
    mixed_sizes,
    plan,
    prepare_network,
    steps_per_epoch,
    train,
)

CHECKOUT = Path(__file__).resolve().parents[2]


def parameters(model: Path) -> dict[str, torch.Tensor]:
    return load_network(model)[0].state_dict()


def assert_same_run(one: Path, other: Path) -> None:
    """Same learning curve and same model, to the bit."""
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    a, b = (parameters(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def stop_after(epoch: int, error: BaseException) -> Callable[..., Fit]:
    """``fit`` with a callback that raises at the end of an epoch, after the checkpoint."""

    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == epoch:
                raise error

    def interrupted(*arguments: Any, **settings: Any) -> Fit:
        return fit(*arguments, **settings, callbacks=(Stop(),))

    return interrupted


# Learning


def test_training_lowers_the_errors(trained: TrainingResult) -> None:
    rows = [line.split(",") for line in (trained.model.parent / "metrics.csv").read_text().split()]
    losses = [float(row[rows[0].index("train_loss")]) for row in rows[1:]]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 4
    potential = load_potential(trained.model)
    fresh = waters(8, seed=5)
    predictions = potential.compute(fresh)
    error = np.mean([np.abs(p.forces - s.forces) for p, s in zip(predictions, fresh, strict=True)])
    size = np.mean([np.abs(s.forces) for s in fresh])
    assert error < 0.25 * size
    energy = np.mean([abs(p.energy - s.energy) for p, s in zip(predictions, fresh, strict=True)])
    assert energy < 0.9 * np.std([s.energy for s in fresh])


def test_a_run_leaves_model_record_and_curve(trained: TrainingResult) -> None:
    folder = trained.model.parent
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"] == trained.metrics
    assert summary["training"]["train"] == 40
    assert summary["training"]["seed"] == 0
    header = load_network(folder)[1]
    assert header["training"]["metrics"]["val_loss"] == trained.metrics["val_loss"]
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert TrainingConfig.model_validate(kept).optimization.epochs == 12


def test_no_file_of_a_run_is_a_pickle(trained: TrainingResult) -> None:
    files = [path for path in trained.model.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".yaml", ".csv", ".json"}
    for path in files:
        start = path.read_bytes()[:16]
        assert not start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05"))


def test_the_model_is_the_average_of_the_best_validation(tmp_path: Path) -> None:
    result = train(
        config(tmp_path, optimization__epochs=6, optimization__learning_rate=0.3), progress=False
    )
    best = ContainerCheckpointIO().load_checkpoint(
        result.model.parent / "checkpoints/best.safetensors"
    )
    model = parameters(result.model)
    for name, value in best["state_dict"].items():
        stored = model[name.removeprefix("network.")]
        torch.testing.assert_close(stored, value.to(stored), rtol=1e-6, atol=1e-12)
    assert any(
        not torch.equal(best["state_dict"][name], best["current_model_state"][name])
        for name in best["state_dict"]
    )
    rows = [line.split(",") for line in (result.model.parent / "metrics.csv").read_text().split()]
    losses = [float(row[rows[0].index("val_loss")]) for row in rows[1:]]
    assert result.best_validation == pytest.approx(min(losses), rel=1e-6)


def test_validation_is_of_the_averaged_weights(tmp_path: Path) -> None:
    """With decay 0 the average is the network itself; else the first epochs lag behind."""
    curves = []
    for decay in (0.0, 0.99):
        settings = config(
            tmp_path, optimization__ema_decay=decay, run__output=str(tmp_path / f"ema{decay}")
        )
        curves.append(train(settings, progress=False).metrics)
    assert curves[0]["train_loss"] == curves[1]["train_loss"]
    assert curves[0]["val_loss"] < curves[1]["val_loss"]


def test_seeds_decide_everything(tmp_path: Path) -> None:
    metrics = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = config(tmp_path, run__seed=seed, run__output=str(tmp_path / name))
        metrics.append(train(settings, progress=False).metrics)
    assert metrics[0] == metrics[1]
    assert metrics[0] != metrics[2]
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_mixed_sizes_and_cells_train(tmp_path: Path) -> None:
    data_file(tmp_path, mixed(60))
    settings = config(tmp_path, optimization__epochs=6, optimization__learning_rate=1e-2)
    result = train(settings, progress=False)
    rows = (result.model.parent / "metrics.csv").read_text().splitlines()
    first, last = (float(row.split(",")[2]) for row in (rows[1], rows[-1]))
    assert last < first


def test_energies_without_forces_train(tmp_path: Path) -> None:
    """Molecules of several sizes, one label each; a run that asks for forces says what to do."""
    bare = [replace(s, forces=None) for s in mixed(60)]
    data_file(tmp_path, bare)
    with pytest.raises(DatasetError, match=r"no forces; .*loss\.forces=0"):
        train(config(tmp_path), progress=False)
    settings = config(
        tmp_path, loss__forces=0.0, optimization__epochs=25, optimization__learning_rate=1e-2
    )
    assert plan(settings).train == 48
    result = train(settings, progress=False)
    assert set(result.metrics) == {"train_loss", "val_loss", "val_energy_mae_meV"}
    rows = (result.model.parent / "metrics.csv").read_text().splitlines()
    first, last = (float(row.split(",")[2]) for row in (rows[1], rows[-1]))
    assert last < 0.6 * first


def test_only_the_structures_that_are_wanted_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "waters.npz"
    parts = {"train": np.arange(48), "validation": np.arange(48, 54), "test": np.arange(54, 60)}
    write_npz(path, waters(60), splits=parts)
    built: list[int] = []
    build = PackedStructures.__getitem__
    monkeypatch.setattr(
        PackedStructures, "__getitem__", lambda self, k: (built.append(k), build(self, k))[1]
    )
    data = DataConfig(dataset=str(path), train=7, validation=2)
    train_set, validation, _ = load_training_structures(data)
    assert (len(train_set), len(validation)) == (7, 2)
    assert len(built) == 9
    with pytest.raises(ConfigError, match=r"data\.validation is 7, but the split has only 6"):
        load_training_structures(data.model_copy(update={"validation": 7}))


def test_errors_of_energies_come_in_the_order_of_the_structures() -> None:
    structures = [s for s in mixed(9) if not s.periodic]
    network = tiny_network(elements=(1, 8), cutoff=3.0)
    found = energy_errors(network, structures)
    alone = [energy_errors(network, [s])[0] for s in structures]
    np.testing.assert_allclose(found, alone, atol=1e-4)
    assert np.ptp(found) > 1  # or any order would do


def test_so3krates_trains(tmp_path: Path) -> None:
    network = {
        "architecture": "so3krates",
        "elements": [1, 8],
        "cutoff": 3.0,
        "features": 12,
        "layers": 1,
        "heads": 3,
        "radial_basis": 6,
    }
    values = tree(tmp_path, optimization__epochs=3) | {"network": network}
    result = train(TrainingConfig.model_validate(values), progress=False)
    rows = (result.model.parent / "metrics.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[2]) < float(rows[1].split(",")[2])


def test_early_stopping(tmp_path: Path) -> None:
    """At a rate too small to change a weight, the second and third validations improve nothing."""
    settings = config(
        tmp_path,
        optimization__epochs=30,
        optimization__patience=2,
        optimization__learning_rate=1e-15,
    )
    result = train(settings, progress=False)
    epochs = len((result.model.parent / "metrics.csv").read_text().splitlines()) - 1
    assert epochs == 3


def test_tensorboard_logs(tmp_path: Path) -> None:
    train(config(tmp_path, run__tensorboard=True), progress=False)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_shorter_than_the_interval_is_validated_at_its_end(tmp_path: Path) -> None:
    result = train(config(tmp_path, run__validate_every=5), progress=False)
    assert result.best_validation == pytest.approx(result.metrics["val_loss"], rel=1e-8)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[1].endswith(",,,")
    assert not rows[2].endswith(",")


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_is_an_error_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    structures = waters(50)
    huge = [
        Structure(s.numbers, s.positions, energy=s.energy, forces=np.full((3, 3), 1e200))
        for s in structures[:10]
    ]
    data_file(tmp_path, [*huge, *structures[10:]])
    with pytest.raises(ConfigError, match=r"diverged in epoch 0.*learning_rate"):
        train(config(tmp_path, loss__kind="mse"), progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()


# Going on


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    settings = config(folder, optimization__epochs=5, run__validate_every=2)
    train(settings, progress=False)
    return folder / "run"


def resumed_config(folder: Path, **changes: Any) -> TrainingConfig:
    return config(folder, optimization__epochs=5, run__validate_every=2, **changes)


@pytest.mark.parametrize("epoch", [1, 4])
def test_resuming_gives_the_uninterrupted_run(
    epoch: int, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resumed_config(
        uninterrupted.parent, run__output=str(uninterrupted.parent / f"broken{epoch}")
    )
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", stop_after(epoch, RuntimeError("the power went out")))
        with pytest.raises(RuntimeError, match="power"):
            train(settings, progress=False)
    assert not (settings.run.output / "model.safetensors").exists()
    torch.manual_seed(99)
    train(settings, progress=False)
    assert_same_run(settings.run.output, uninterrupted)


def test_rarer_checkpoints_repeat_epochs_to_the_same_end(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resumed_config(
        uninterrupted.parent,
        run__checkpoint_every=2,
        run__output=str(uninterrupted.parent / "rare"),
    )
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", stop_after(3, RuntimeError("the power went out")))
        with pytest.raises(RuntimeError):
            train(settings, progress=False)
    assert len((settings.run.output / "metrics.csv").read_text().splitlines()) == 4
    train(settings, progress=False)
    assert_same_run(settings.run.output, uninterrupted)


def test_ctrl_c_leaves_a_folder_that_goes_on(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resumed_config(
        uninterrupted.parent, run__output=str(uninterrupted.parent / "ctrl_c")
    )
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", stop_after(2, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(settings, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler, "a second Ctrl-C must work as well"
    assert not list(settings.run.output.rglob("*.part*"))
    train(settings, progress=False)
    assert_same_run(settings.run.output, uninterrupted)


def test_a_killed_process_leaves_a_folder_that_goes_on(uninterrupted: Path) -> None:
    settings = resumed_config(
        uninterrupted.parent, run__output=str(uninterrupted.parent / "killed")
    )
    path = uninterrupted.parent / "killed.yaml"
    path.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    # The process kills itself in the middle of an epoch, between two steps, without any clean-up.
    program = f"""
import os, signal
from pathlib import Path
from equibit.training.config import load_config
from equibit.training.module import ForceField
from equibit.training.run import train
step = ForceField.training_step
def deadly(self, batch, index):
    if self.current_epoch == 3 and index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
ForceField.training_step = deadly
train(load_config(Path({str(path)!r})), progress=False)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, timeout=200
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (settings.run.output / "model.safetensors").exists()
    train(settings, progress=False)
    assert_same_run(settings.run.output, uninterrupted)


def test_a_finished_run_is_not_run_again(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    monkeypatch.setattr(run_module, "fit", None)
    result = train(resumed_config(uninterrupted.parent), progress=False)
    assert result.metrics["val_loss"] > 0
    assert result.model == uninterrupted / "model.safetensors"
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_killed_before_its_model_was_written_only_writes_it(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resumed_config(uninterrupted.parent, run__output=str(uninterrupted.parent / "late"))

    def killed(*_: Any) -> None:
        raise RuntimeError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_summary", killed)
        with pytest.raises(RuntimeError):
            train(settings, progress=False)
    result = train(settings, progress=False)
    assert_same_run(settings.run.output, uninterrupted)
    assert result.metrics == train(resumed_config(uninterrupted.parent), progress=False).metrics


def test_the_figures_are_those_of_the_weights_in_the_model(tmp_path: Path) -> None:
    settings = config(tmp_path, optimization__epochs=6, optimization__learning_rate=0.3)
    result = train(settings, progress=False)
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().split()]
    losses = [float(row[rows[0].index("val_loss")]) for row in rows[1:]]
    assert np.argmin(losses) < 5, "the last epoch is the best; the test needs another"
    assert result.metrics["val_loss"] == min(losses)
    structures = run_module.load_training_structures(settings.data)[1]
    predictions = load_potential(result.model).compute(structures)
    errors = [abs(p.energy - s.energy) for p, s in zip(predictions, structures, strict=True)]
    assert 1e3 * np.mean(errors) == pytest.approx(result.metrics["val_energy_mae_meV"], rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimization__learning_rate": 0.1},
        {"optimization__epochs": 6},
        {"network__layers": 2},
        {"run__seed": 1},
        {"loss__energy": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_folder_of_another_configuration_is_left_alone(
    changes: dict[str, Any], uninterrupted: Path
) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    values = tree(uninterrupted.parent, optimization__epochs=5, run__validate_every=2)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    settings = TrainingConfig.model_validate(values)
    for action in (train, plan):
        with pytest.raises(ConfigError, match=r"another configuration.*config\.yaml.*--restart"):
            action(settings)
    assert {path: path.read_bytes() for path in before} == before


def test_threads_and_schedules_of_saving_may_change(uninterrupted: Path) -> None:
    settings = resumed_config(uninterrupted.parent, run__threads=2, run__checkpoint_every=3)
    assert train(settings, progress=False).model == uninterrupted / "model.safetensors"


def test_a_restart_forgets_the_old_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first checkpoint, the new run must not go on from the old one's."""
    train(config(tmp_path), progress=False)
    settings = config(tmp_path, optimization__learning_rate=0.1, run__checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", stop_after(1, RuntimeError("the power went out")))
        with pytest.raises(RuntimeError):
            train(settings, resume=False, progress=False)
    result = train(settings, progress=False)
    straight = config(
        tmp_path,
        optimization__learning_rate=0.1,
        run__checkpoint_every=2,
        run__output=str(tmp_path / "straight"),
    )
    train(straight, progress=False)
    assert_same_run(result.model.parent, tmp_path / "straight")


# Checkpoints


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """A run of three epochs stopped after one."""
    settings = config(tmp_path, optimization__epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", stop_after(1, RuntimeError("stop")))
        with pytest.raises(RuntimeError):
            train(settings, progress=False)
    return settings


def rewritten_version(data: bytes) -> bytes:
    import hashlib

    from safetensors.numpy import load, save

    length = int.from_bytes(data[:8], "little")
    envelope = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["equibit"])
    body = json.dumps(envelope["header"] | {"version": 99}, sort_keys=True, separators=(",", ":"))
    tensors = load(data)
    digest = hashlib.sha256(body.encode())
    for name, tensor in sorted(tensors.items()):
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"\n{name} {tensor.dtype.name} {shape}\n".encode() + tensor.tobytes())
    text = f'{{"sha256":"{digest.hexdigest()}","header":{body}}}'
    return bytes(save(tensors, {"equibit": text}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:100], "truncated"),
        (lambda data: b"", "empty"),
        (lambda data: b"PK\x03\x04" + data, "not an equibit file"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "checksum"),
        (rewritten_version, "version 99"),
    ],
    ids=["truncated", "cut in its header", "empty", "foreign", "bit flip", "another version"],
)
def test_unusable_checkpoints_are_named_and_nothing_is_lost(
    damage: Callable[[bytes], bytes], message: str, stopped: TrainingConfig
) -> None:
    folder = stopped.run.output
    last = folder / "checkpoints" / "last.safetensors"
    last.write_bytes(damage(last.read_bytes()))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FileFormatError, match=message) as caught:
        train(stopped, progress=False)
    assert str(last) in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before
    assert not (folder / "model.safetensors").exists()


def test_a_model_file_is_no_checkpoint(stopped: TrainingConfig, trained: TrainingResult) -> None:
    last = stopped.run.output / "checkpoints" / "last.safetensors"
    last.write_bytes(trained.model.read_bytes())
    with pytest.raises(FileFormatError, match="holds a model, but a checkpoint is needed"):
        train(stopped, progress=False)


def test_what_an_older_version_did_not_know_has_its_default(uninterrupted: Path) -> None:
    path = uninterrupted / "config.yaml"
    kept = path.read_text()
    tree = yaml.safe_load(kept)
    del tree["optimization"]["weight_decay"], tree["start"]
    path.write_text(yaml.safe_dump(tree))
    settings = TrainingConfig.model_validate(yaml.safe_load(kept))
    check_folder(settings, uninterrupted)
    tree["optimization"]["unheard_of"] = 1
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="another configuration"):
        check_folder(settings, uninterrupted)
    path.write_text(kept)


def test_a_damaged_description_is_no_licence_to_overwrite(stopped: TrainingConfig) -> None:
    (stopped.run.output / "config.yaml").write_text("[1, 2")
    with pytest.raises(ConfigError, match="another configuration"):
        train(stopped, progress=False)


def test_checkpoints_hold_any_state_exactly(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.safetensors"
    state = {
        "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)},
        "by number": {0: "zero", 1: [1.5, float("inf"), None, True]},
        "tuple": (1, (2.0, "x")),
        "path": Path("runs/best"),
        "tiny": 1e-310,
        "pi": 3.141592653589793,
    }
    store = ContainerCheckpointIO()
    store.save_checkpoint(state, path)
    back = store.load_checkpoint(path)
    assert torch.equal(back["weights"].pop("a"), state["weights"].pop("a"))  # type: ignore[attr-defined]
    assert back["weights"].pop("b").item() == 3
    assert back == state | {"weights": {}, "path": "runs/best"}
    store.remove_checkpoint(path)
    store.remove_checkpoint(path)
    assert not path.exists()


def test_checkpoints_refuse_what_only_a_pickle_could_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        ContainerCheckpointIO().save_checkpoint({"x": object()}, tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint(
    stopped: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped.run.output
    before = (folder / "checkpoints" / "last.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match=r"no space left.*free some space"):
            train(stopped, progress=False)
    assert (folder / "checkpoints" / "last.safetensors").read_bytes() == before
    assert not list(folder.rglob("*.part*"))
    train(stopped, progress=False)
    assert (folder / "model.safetensors").exists()


# Bad input


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"network__elements": [1, 6]}, ConfigError, r"network\.elements lacks \[8\]"),
        ({"data__train": 41}, ConfigError, r"data\.train is 41, .*only 40 structures"),
        ({"data__validation": 6}, ConfigError, r"data\.validation is 6, .*only 5"),
        ({"optimization__batch_size": 41}, ConfigError, "batch size is 41.*only 40"),
        ({"data__dataset": "nowhere/water.xyz"}, FileFormatError, "nowhere/water.xyz"),
        ({"data__dataset": "rmd17/ethanl"}, DatasetError, "rmd17/ethanol"),
    ],
    ids=["element", "train", "validation", "batch", "missing file", "misspelt name"],
)
def test_impossible_runs_write_nothing(
    changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    settings = config(tmp_path, **changes)
    for action in (train, plan):
        with pytest.raises(kind, match=message):
            action(settings)
    assert not settings.run.output.exists()


def test_elements_of_the_validation_set_count_too(tmp_path: Path) -> None:
    structures = waters(50)
    carbon = label([Structure([6], [[0.0, 0.0, 0.0]])])[0]
    data_file(tmp_path, [*structures[:47], *[carbon] * 3])
    with pytest.raises(ConfigError, match=r"lacks \[6\]"):
        train(config(tmp_path), progress=False)


# Plans


def test_a_plan_says_what_the_run_will_do_and_writes_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, data__train=20, run__output=str(tmp_path / "out"))
    data_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    outlook = plan(settings)
    assert sorted(tmp_path.rglob("*")) == before
    assert (outlook.train, outlook.validation, outlook.steps) == (20, 5, 8)
    assert not outlook.compiled
    assert outlook.resumes_from is None
    expected = sum(p.numel() for p in prepare_network(settings, waters(5)).parameters())
    assert outlook.parameters == expected
    json.dumps(asdict(outlook))


def test_a_plan_names_the_checkpoint_to_resume(stopped: TrainingConfig) -> None:
    assert plan(stopped).resumes_from == str(
        stopped.run.output / "checkpoints" / "last.safetensors"
    )


def test_compiling_pays_for_long_runs_on_one_molecule() -> None:
    auto = RunConfig()
    assert compile_pays(auto, waters(2), 20_000)
    assert not compile_pays(auto, waters(2), 19_999)
    assert not compile_pays(auto, mixed(4), 10**9)
    assert compile_pays(RunConfig(compile="on"), mixed(4), 1)
    assert not compile_pays(RunConfig(compile="off"), waters(2), 10**9)
    assert mixed_sizes(mixed(4))
    assert not mixed_sizes(waters(3))


def test_torchrun_decides_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_per_epoch(40, RunConfig(devices=2, nodes=2), 5) == 2
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("WORLD_SIZE", "8"),
    ):
        monkeypatch.setenv(name, value)
    assert steps_per_epoch(40, RunConfig(), 5) == 1


# Starting from a model


def test_a_start_at_another_level_keeps_forces_and_moves_energies(
    tmp_path: Path, trained: TrainingResult
) -> None:
    moved = {1: 3.25, 8: 100.0}
    structures = waters(12, seed=5)
    elsewhere = [
        replace(s, energy=s.energy + sum(moved[int(z)] for z in s.numbers)) for s in structures
    ]
    network = prepare_network(
        config(tmp_path, start=str(trained.model), network__layers=2), elsewhere
    )
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    parent = load_potential(trained.model).compute(structures)
    start = TorchPotential(network).compute(structures)
    errors = [s.energy - p.energy for s, p in zip(elsewhere, start, strict=True)]
    assert np.mean(errors) == pytest.approx(0, abs=1e-6)
    for one, other in zip(start, parent, strict=True):
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-6)


def test_a_start_may_know_more_elements_than_the_data(tmp_path: Path) -> None:
    """An element without data keeps its energy; data with one that the parent lacks are refused."""
    network = {"network__elements": [1, 6, 8]}
    first = train(config(tmp_path, **network), progress=False)
    parent, _ = load_network(first.model)
    changed = [replace(s, energy=s.energy + 7.0) for s in waters(12, seed=5)]
    again = prepare_network(config(tmp_path, start=str(first.model), **network), changed)
    assert again.energy_shift[1] == parent.energy_shift[1]
    errors = energy_errors(again, changed)
    assert np.mean(errors) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ConfigError, match=r"elements must be \[1, 6, 8\], more than the data"):
        plan(config(tmp_path, start=str(first.model), run__output=str(tmp_path / "other")))


def test_a_started_run_records_its_parent_and_is_finished_once(
    tmp_path: Path, trained: TrainingResult
) -> None:
    settings = config(tmp_path, start=str(trained.model), network__layers=2)
    result = train(settings, progress=False)
    parent = json.loads((result.model.parent / "summary.json").read_text())["training"]["parent"]
    assert parent["name"] == trained.model.parent.name
    assert result.best_validation is not None
    assert trained.best_validation is not None
    assert result.best_validation < 1.1 * trained.best_validation
    assert train(settings, progress=False) == result
    with pytest.raises(ConfigError, match="another configuration"):
        train(config(tmp_path), progress=False)


def test_unusable_starts_are_named(tmp_path: Path, trained: TrainingResult) -> None:
    wider = config(
        tmp_path, start=str(trained.model), network__layers=2, network__irreps="16x0e+8x1o"
    )
    with pytest.raises(ConfigError, match=r"another network \(irreps differ\)"):
        plan(wider)
    network, _ = load_network(trained.model)
    quantize_(network, "w8a8")
    freeze_(network)
    save_model(tmp_path / "low.safetensors", network, name="low", training={})
    with pytest.raises(ModelError, match=r"quantised \(w8a8\)"):
        plan(config(tmp_path, start=str(tmp_path / "low.safetensors")))
    with pytest.raises(ModelError, match=r"nowhere\.safetensors"):
        plan(config(tmp_path, start=str(tmp_path / "nowhere.safetensors")))
