"""From a trained parent to a low-bit network: schedule, LEE term, control, calibration alone."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.networks.test_equivariant_transformer import tiny_network
from tests.training.toy import mixed, waters
from torch import Tensor

import equibit.training.qat as qat_module
from equibit.evaluation.equivariance import haar_rotations
from equibit.models.files import load_network, load_potential, save_model
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import TorchPotential, energies_and_edge_gradients
from equibit.quantization.codecs import VectorQuantizer
from equibit.quantization.convert import (
    calibrate,
    quantize_,
    quantized_layers,
    scalar_parameters,
    vector_parameters,
)
from equibit.quantization.published import MovingRangeQuantizer, PACTQuantizer
from equibit.quantization.quantizers import ScalarQuantizer
from equibit.quantization.recipes import Recipe, WeightSpec, get_recipe
from equibit.structures import ConfigError, DatasetError, ModelError
from equibit.training.batches import Collator
from equibit.training.checkpoints import ContainerCheckpointIO
from equibit.training.config import RunConfig
from equibit.training.fit import Fit, fit
from equibit.training.qat import (
    CONTROL,
    QuantizationConfig,
    QuantizedForceField,
    equivariance_loss,
    fitting,
    gradient_only_to,
    quantize,
    random_rotations,
)
from equibit.training.run import TrainingResult

TRAIN, VALIDATION = waters(30, seed=1), waters(5, seed=2)
DATA = {"dataset": "toy", "labels": "morse", "split": None}


def settings(trained: TrainingResult, folder: Path, **changes: Any) -> QuantizationConfig:
    run = RunConfig(
        output=folder, device="cpu", compile="off", validate_every=1, checkpoint_every=1
    )
    values: dict[str, Any] = {
        "parent": str(trained.model),
        "epochs": 2,
        "scalar_epochs": 1,
        "calibration": 10,
        "batch_size": 5,
        "run": run,
    }
    return QuantizationConfig(**values | changes)


def run_quantize(config: QuantizationConfig, **options: Any) -> TrainingResult:
    return quantize(config, TRAIN, VALIDATION, data=DATA, progress=False, **options)


def quantized_network(recipe: str | Recipe = "paper-w8a8") -> tuple[AtomisticNetwork, Collator]:
    network = quantize_(tiny_network(), recipe)
    collator = Collator(TRAIN[:6], network)
    calibrate(network, [collator(range(6)).inputs])
    return network, collator


def test_a_parent_becomes_a_frozen_low_bit_model(trained: TrainingResult, tmp_path: Path) -> None:
    result = run_quantize(settings(trained, tmp_path))
    network, header = load_network(result.model)
    assert network.recipe == get_recipe("w4a8")
    assert all(layer.frozen for layer in quantized_layers(network).values())
    assert header["training"]["recipe"] == "w4a8"
    assert header["training"]["parent"]["training"]["dataset"] == "water"
    parent = load_potential(trained.model).compute(VALIDATION)
    child = load_potential(result.model).compute(VALIDATION)
    spread = np.mean([np.abs(p.forces).mean() for p in parent])
    change = np.mean([np.abs(p.forces - c.forces) for p, c in zip(parent, child, strict=True)])
    assert 0 < change < 0.4 * spread


@pytest.mark.parametrize("recipe", ["w8a8", CONTROL])
def test_energies_alone_are_fine_tuned(
    trained: TrainingResult, tmp_path: Path, recipe: str
) -> None:
    """Structures without labels of forces, of several sizes."""
    bare, held_out = ([replace(s, forces=None) for s in mixed(count, seed=3)] for count in (24, 8))
    asked = settings(trained, tmp_path, recipe=recipe)
    with pytest.raises(DatasetError, match=r"no forces; .*loss\.forces=0"):
        quantize(asked, bare, held_out, data=DATA, progress=False)
    config = fitting(asked, bare)
    assert config.loss.energies_alone
    assert (config.loss.energy, config.loss.kind) == (asked.loss.energy, asked.loss.kind)
    result = quantize(config, bare, held_out, data=DATA, progress=False)
    assert set(result.metrics) == {"train_loss", "val_loss", "val_energy_mae_meV"}
    found = load_potential(result.model).compute(bare)
    errors = [p.energy - s.energy for p, s in zip(found, bare, strict=True)]
    assert np.mean(errors) == pytest.approx(0, abs=1e-4)


def test_forces_are_learned_where_there_are_any(trained: TrainingResult, tmp_path: Path) -> None:
    config = settings(trained, tmp_path)
    assert fitting(config, TRAIN) == config
    bare = [replace(s, forces=None) for s in TRAIN]
    assert fitting(config, [*bare, TRAIN[0]]) == config, "one without forces is a mistake to name"
    by_parent = settings(trained, tmp_path, labels="parent")
    assert fitting(by_parent, bare) == by_parent, "the parent labels them"


def test_the_last_epoch_is_kept_where_it_is_not_far_behind(
    trained: TrainingResult, tmp_path: Path
) -> None:
    asked = settings(trained, tmp_path, recipe=CONTROL, epochs=3, learning_rate=1e-5)

    def weights_of(epoch: str) -> dict[str, Tensor]:
        path = tmp_path / "checkpoints" / f"{epoch}.safetensors"
        return dict(ContainerCheckpointIO().load_checkpoint(path)["state_dict"])

    def same(result: TrainingResult, weights: dict[str, Tensor]) -> bool:
        network, _ = load_network(result.model)
        return all(
            torch.allclose(value, weights[f"network.{name}"].to(value), rtol=1e-6, atol=1e-9)
            for name, value in network.named_parameters()
        )

    def again() -> TrainingResult:
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "summary.json").unlink()
        return run_quantize(asked)

    result = run_quantize(asked)
    losses = [float(row["val_loss"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert result.metrics["val_loss"] == losses[-1]
    assert same(result, weights_of("last"))
    before = result.model.read_bytes()
    assert again().model.read_bytes() == before

    last = tmp_path / "checkpoints" / "last.safetensors"
    state = ContainerCheckpointIO().load_checkpoint(last)
    for value in state["state_dict"].values():
        value.mul_(1.5)
    ContainerCheckpointIO().save_checkpoint(state, last)
    result = again()
    assert result.metrics["val_loss"] == min(losses)
    assert same(result, weights_of("best"))


def test_the_figures_are_those_of_the_written_model(
    trained: TrainingResult, tmp_path: Path
) -> None:
    """Frozen, with its floats rounded to 16 bits and its energies fitted once more."""
    result = run_quantize(settings(trained, tmp_path))
    potential = load_potential(result.model)
    errors = [
        np.array([p.energy - s.energy for p, s in zip(potential.compute(part), part, strict=True)])
        for part in (TRAIN, VALIDATION)
    ]
    assert np.mean(errors[0]) == pytest.approx(0, abs=1e-6)
    stated = result.metrics["val_energy_mae_meV"]
    assert 1e3 * np.abs(errors[1]).mean() == pytest.approx(stated, rel=1e-3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"]["val_energy_mae_meV"] == stated


def test_a_folder_keeps_what_the_recipe_meant(trained: TrainingResult, tmp_path: Path) -> None:
    run_quantize(settings(trained, tmp_path, recipe="w8a8", epochs=0))
    changed = get_recipe("w8a8").model_copy(update={"attention_bits": 8})
    assert settings(trained, tmp_path, recipe="w8a8", epochs=0).recipe == get_recipe("w8a8")
    with pytest.raises(ConfigError, match="another configuration"):
        run_quantize(settings(trained, tmp_path, recipe=changed, epochs=0))


def test_the_parent_can_label_the_geometries(trained: TrainingResult, tmp_path: Path) -> None:
    bare = [[replace(s, energy=None, forces=None) for s in part] for part in (TRAIN, VALIDATION)]
    recipe = get_recipe("w4a8").model_copy(update={"float_bits": 32})
    result = quantize(
        settings(trained, tmp_path, recipe=recipe, labels="parent"),
        *bare,
        data=DATA,
        progress=False,
    )
    _, header = load_network(result.model)
    assert header["training"]["labels"].startswith("the FP32 parent")
    parent = load_potential(trained.model).compute(VALIDATION)
    child = load_potential(result.model).compute(VALIDATION)
    change = np.mean([abs(p.energy - c.energy) for p, c in zip(parent, child, strict=True)])
    assert 1e3 * change == pytest.approx(result.metrics["val_energy_mae_meV"], rel=1e-3)


def test_fine_tuning_beats_calibration_alone(trained: TrainingResult, tmp_path: Path) -> None:
    """With weights of two bits, so coarse that there is something to win back."""
    recipe = Recipe(name="coarse", weights=WeightSpec(bits=2))
    errors = {}
    for epochs in (0, 6):
        changes = {"epochs": epochs, "learning_rate": 3e-3, "ema_decay": 0.5}
        folder = tmp_path / str(epochs)
        result = run_quantize(settings(trained, folder, recipe=recipe, **changes))
        predictions = load_potential(result.model).compute(VALIDATION)
        errors[epochs] = np.mean(
            [np.abs(p.forces - s.forces) for p, s in zip(predictions, VALIDATION, strict=True)]
        )
    assert errors[6] < 0.75 * errors[0]


def test_calibration_alone_writes_a_model_without_training(
    trained: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat_module, "fit", None)
    result = run_quantize(settings(trained, tmp_path, epochs=0))
    assert result.best_validation is None
    assert load_network(result.model)[0].recipe is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "summary.json",
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["best_validation"] is None


def test_calibration_alone_leaves_no_error_common_to_all_energies(
    trained: TrainingResult, tmp_path: Path
) -> None:
    result = run_quantize(settings(trained, tmp_path, epochs=0, recipe="w4a8"))
    predictions = load_potential(result.model).compute(TRAIN)
    errors = [p.energy - s.energy for p, s in zip(predictions, TRAIN, strict=True)]
    assert abs(np.mean(errors)) < 1e-6
    assert np.std(errors) > 1e-4


def test_the_schedule_rounds_scalars_first(trained: TrainingResult, tmp_path: Path) -> None:
    """What is on during each epoch's steps and validations, by branch."""
    seen: list[tuple[str, int, bool, bool]] = []

    class Spy(lightning.Callback):
        def look(self, what: str, trainer: lightning.Trainer, module: Any) -> None:
            network = module.network
            scalars = {m.enabled for m in network.modules() if isinstance(m, ScalarQuantizer)}
            vectors = {m.enabled for m in network.modules() if isinstance(m, VectorQuantizer)}
            weights = {
                layer.weight_quantizer.enabled
                for name, layer in quantized_layers(network).items()
                if "mix" in name
            }
            assert len(scalars) == len(vectors) == 1
            assert weights == vectors
            seen.append((what, trainer.current_epoch, scalars.pop(), vectors.pop()))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.look("train", trainer, pl_module)

        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.look("validation", trainer, pl_module)

    def spied(*arguments: Any, **options: Any) -> Fit:
        return fit(*arguments, **options, callbacks=(Spy(),))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat_module, "fit", spied)
        run_quantize(settings(trained, tmp_path, epochs=3, scalar_epochs=2))
    assert {entry for entry in seen if entry[0] == "train"} == {
        ("train", 0, True, False),
        ("train", 1, True, False),
        ("train", 2, True, True),
    }
    assert {entry[2:] for entry in seen if entry[0] == "validation"} == {(True, True)}


def test_the_control_is_trained_and_not_rounded(trained: TrainingResult, tmp_path: Path) -> None:
    result = run_quantize(settings(trained, tmp_path, recipe=CONTROL, learning_rate=1e-3))
    network, header = load_network(result.model)
    assert network.recipe is None
    assert header["training"]["recipe"] == "fp32"
    before = load_network(trained.model)[0].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("recipe", ["w4a8", CONTROL])
def test_a_quantised_network_is_no_parent(
    recipe: str, trained: TrainingResult, tmp_path: Path
) -> None:
    first = run_quantize(settings(trained, tmp_path / "first", epochs=0))
    with pytest.raises(ModelError, match=r"already quantised \(w4a8\).*FP32 parent"):
        run_quantize(settings(first, tmp_path / "second", recipe=recipe))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"recipe": "w4a9"}, ValidationError, "w4a9.*did you mean"),
        ({"parent": "nowhere.safetensors"}, ModelError, "nowhere.safetensors"),
        ({"batch_size": 31}, ConfigError, "batch size is 31"),
    ],
    ids=["recipe", "parent", "batch"],
)
def test_impossible_quantisations_write_nothing(
    changes: dict[str, Any],
    kind: type[Exception],
    message: str,
    trained: TrainingResult,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind, match=message):
        run_quantize(settings(trained, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_element_the_parent_never_saw(tmp_path: Path) -> None:
    network = tiny_network(elements=(1, 6))
    save_model(tmp_path / "p.safetensors", network, name="p", training={})
    config = QuantizationConfig(
        parent=str(tmp_path / "p.safetensors"), run=RunConfig(output=tmp_path / "run")
    )
    with pytest.raises(ModelError, match=r"atom 0 is O.*it knows H, C"):
        run_quantize(config)
    assert not (tmp_path / "run").exists()


def test_resuming_gives_the_uninterrupted_quantisation(
    trained: TrainingResult, tmp_path: Path
) -> None:
    """Interrupted in the first epoch that rounds vectors and adds the LEE term."""
    changes: dict[str, Any] = {"recipe": "paper-w4a8", "lee_weight": 0.1}
    run_quantize(settings(trained, tmp_path / "straight", **changes))

    class Stop(lightning.Callback):
        def on_train_batch_start(
            self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 3):
                raise RuntimeError("stop")

    def stopped(*arguments: Any, **options: Any) -> Fit:
        return fit(*arguments, **options, callbacks=(Stop(),))

    broken = settings(trained, tmp_path / "broken", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat_module, "fit", stopped)
        with pytest.raises(RuntimeError):
            run_quantize(broken)
    run_quantize(broken)
    for name in ("metrics.csv",):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "straight" / name
        ).read_bytes()
    models = [load_network(tmp_path / run)[0].state_dict() for run in ("straight", "broken")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_finished_quantisation_is_kept_unless_its_parent_changed(
    trained: TrainingResult, tmp_path: Path
) -> None:
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(trained.model.read_bytes())
    run = RunConfig(output=tmp_path / "run", device="cpu")
    config = QuantizationConfig(parent=str(parent), epochs=0, run=run)
    result = run_quantize(config)
    before = result.model.read_bytes()
    assert run_quantize(config).seconds == result.seconds
    save_model(parent, tiny_network(elements=(1, 8)), name="another", training={})
    with pytest.raises(ConfigError, match="another version of its parent"):
        run_quantize(config)
    assert result.model.read_bytes() == before
    run_quantize(config, resume=False)
    assert result.model.read_bytes() != before


# The LEE term


def test_lee_loss_is_the_commutation_error_of_the_forces() -> None:
    network, _ = quantized_network("naive-w8a8")
    network.double()
    collator = Collator(TRAIN[:3], network)
    seed = 5
    loss = equivariance_loss(
        network, collator(range(3)).inputs, torch.Generator().manual_seed(seed)
    )
    rotations = random_rotations(3, torch.Generator().manual_seed(seed)).numpy()
    potential = TorchPotential(network)
    expected = []
    for structure, rotation in zip(TRAIN[:3], rotations, strict=True):
        # Row vectors are multiplied from the right in the package: the matrix acts transposed.
        straight = potential.compute([structure])[0].forces @ rotation
        turned = potential.compute([structure.rotated(rotation.T)])[0].forces
        expected.append(np.linalg.norm(turned - straight, axis=1))
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert loss.item() > 1e-4


def test_lee_loss_of_local_frames_is_round_off() -> None:
    network, _ = quantized_network("w4a8")
    network.double()
    batch = Collator(TRAIN[:3], network)(range(3)).inputs
    loss = equivariance_loss(network, batch, torch.Generator().manual_seed(0))
    assert loss.item() < 2e-8  # the floor of the norm


def test_lee_gradient_reaches_the_vector_branch_only() -> None:
    network, collator = quantized_network()
    batch = collator(range(6)).inputs

    def loss() -> torch.Tensor:
        return equivariance_loss(network, batch, torch.Generator().manual_seed(1))

    vectors = vector_parameters(network)
    gradient_only_to(loss(), vectors).backward()
    restricted = [p.grad.clone() for p in vectors if p.grad is not None]
    assert all(p.grad is None for p in scalar_parameters(network))
    network.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    full = [p.grad for p in vectors if p.grad is not None]
    assert len(restricted) == len(full) > 0
    for one, other in zip(restricted, full, strict=True):
        torch.testing.assert_close(one, other)
    assert any(gradient.abs().max() > 0 for gradient in full)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in scalar_parameters(network))
    assert gradient_only_to(loss(), vectors).item() == pytest.approx(value.item(), rel=1e-12)


def test_the_lee_term_waits_for_the_vectors_and_moves_only_them() -> None:
    network, collator = quantized_network()
    config = QuantizationConfig(parent="p", scalar_epochs=1, lee_weight=3.0)
    module = QuantizedForceField(network, config, total_steps=10)
    logged: dict[str, Any] = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[method-assign]
    losses: list[float] = []
    gradients: list[list[torch.Tensor]] = []
    parameters = [*scalar_parameters(network), *vector_parameters(network)]
    for epoch in (0, 1):

        class Trainer:
            current_epoch = epoch
            global_step = 0

        module._trainer = Trainer()  # type: ignore[assignment]
        network.zero_grad(set_to_none=False)
        loss = module.training_step(collator(range(6)), 0)
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            [torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters]
        )
    lee = logged["train_lee"].item()
    assert lee > 0
    assert losses[1] == pytest.approx(losses[0] + 3.0 * lee, rel=1e-9)
    n_scalar = len(scalar_parameters(network))
    same = [torch.equal(one, other) for one, other in zip(*gradients, strict=True)]
    assert all(same[:n_scalar])
    assert not all(same[n_scalar:])


def test_quantisers_have_their_say_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    network, collator = quantized_network("pact-w8a8")
    config = QuantizationConfig(parent="p", scalar_epochs=0)
    module = QuantizedForceField(network, config, total_steps=10)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    plain = module.training_step(collator(range(6)), 0).item()
    monkeypatch.setattr(PACTQuantizer, "decay", 3e-4)
    heavier = module.training_step(collator(range(6)), 0).item()
    clips = [m for m in network.modules() if isinstance(m, PACTQuantizer)]
    total = sum(float((m.low.square() + m.high.square()).detach()) for m in clips)
    assert len(clips) > 5
    assert heavier - plain == pytest.approx(2e-4 * total, rel=1e-3)


def test_moving_ranges_follow_the_training(trained: TrainingResult, tmp_path: Path) -> None:
    ends = []
    for epochs in (0, 2):
        config = settings(
            trained, tmp_path / str(epochs), recipe="jacob-w8a8", epochs=epochs, scalar_epochs=0
        )
        network, _ = load_network(run_quantize(config).model)
        ranges = [m for m in network.modules() if isinstance(m, MovingRangeQuantizer)]
        ends.append([float(m.high) for m in ranges])
    moved = [one != other for one, other in zip(*ends, strict=True)]
    assert len(moved) > 5
    assert all(moved)


@pytest.mark.parametrize("recipe", ["smoothquant-w8a8", "qdrop-w4a8", "zeroquant-w4a8"])
def test_methods_that_need_no_training_get_none(
    trained: TrainingResult, tmp_path: Path, recipe: str
) -> None:
    short = get_recipe(recipe)
    if short.reconstruction is not None:
        fewer = short.reconstruction.model_copy(update={"steps": 2})
        short = short.model_copy(update={"reconstruction": fewer})
    result = run_quantize(settings(trained, tmp_path, recipe=short))
    assert not (tmp_path / "metrics.csv").exists()
    network, header = load_network(result.model)
    assert header["training"]["epochs"] == 0
    assert network.recipe == short


def test_the_lee_term_is_logged_and_trains(trained: TrainingResult, tmp_path: Path) -> None:
    result = run_quantize(
        settings(trained, tmp_path, recipe="gaq-w4a8", lee_weight=1.0, scalar_epochs=1)
    )
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_lee")
    assert [row.split(",")[column] != "" for row in rows[1:]] == [False, True]
    assert result.metrics["train_lee"] > 0


def test_random_rotations_are_haar_distributed_and_proper() -> None:
    rotations = random_rotations(4000, torch.Generator().manual_seed(0))
    identity = torch.eye(3, dtype=torch.float64).expand(4000, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4000, dtype=torch.float64))
    # Haar: E[R] = 0 and E[tr(R)²] = 1, as for the package's NumPy implementation.
    assert rotations.mean(0).abs().max() < 0.05
    for matrices in (rotations.numpy(), haar_rotations(4000)):
        traces = np.trace(matrices, axis1=1, axis2=2)
        assert np.mean(traces**2) == pytest.approx(1.0, abs=0.1)


def test_quantised_steps_are_differentiable_twice() -> None:
    network, collator = quantized_network("w4a8")
    batch = collator(range(6))
    _, gradients = energies_and_edge_gradients(network, batch.inputs)
    (batch.inputs.graph.forces(gradients) - batch.forces).square().sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in vector_parameters(network))
