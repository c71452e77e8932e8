"""The loss, the learning rate and the training step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.networks.test_equivariant_transformer import tiny_network
from tests.training.toy import mixed, waters

from equibit.structures import Structure
from equibit.training.batches import Collator
from equibit.training.config import LossConfig, OptimizationConfig
from equibit.training.module import ForceField, energy_force_loss, warmup_cosine


def test_mae_loss_is_the_weighted_sum_of_both_means() -> None:
    energy_error = torch.tensor([0.3, -0.1], dtype=torch.float64)
    force_error = torch.zeros(2, 3, 3, dtype=torch.float64)
    force_error[0, 0] = torch.tensor([3.0, 0.0, 4.0])
    force_error[1, 1] = torch.tensor([0.0, 1.0, 0.0])
    n_atoms = torch.tensor([3, 2])  # one row of padding
    loss = LossConfig(energy=0.5, forces=2.0)
    value = energy_force_loss(energy_error, force_error, n_atoms, loss)
    assert value.item() == pytest.approx(0.5 * 0.2 + 2.0 * 6.0 / 5, rel=1e-6)


def test_mse_loss_squares_energies_and_force_vectors() -> None:
    energy_error = torch.tensor([0.3, -0.1], dtype=torch.float64)
    force_error = torch.zeros(5, 3, dtype=torch.float64)
    force_error[0] = torch.tensor([3.0, 0.0, 4.0])
    loss = LossConfig(energy=1.0, forces=1.0, kind="mse")
    value = energy_force_loss(energy_error, force_error, torch.tensor([3, 2]), loss)
    assert value.item() == pytest.approx(0.05 + 25 / 5, rel=1e-12)


@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_gradients_are_finite_where_a_force_is_met_exactly(kind: str) -> None:
    error = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    value = energy_force_loss(
        torch.zeros(1, dtype=torch.float64),
        error,
        torch.tensor([4]),
        LossConfig(kind=kind),  # type: ignore[arg-type]
    )
    (gradient,) = torch.autograd.grad(value, error)
    assert (gradient == 0).all()


def test_learning_rate_rises_then_falls_to_its_final_share() -> None:
    rates = [warmup_cosine(k, warmup=10, total=100, final=0.01) for k in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.09)))
    assert max(rates) == max(rates[8:11])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[50] == pytest.approx(0.505)
    assert rates[100] == pytest.approx(0.01)


@given(
    step=st.integers(min_value=0, max_value=10**6),
    warmup=st.integers(min_value=0, max_value=1000),
    total=st.integers(min_value=0, max_value=10**5),
    final=st.floats(min_value=0, max_value=1),
)
def test_learning_rate_stays_a_share(step: int, warmup: int, total: int, final: float) -> None:
    assert 0 <= warmup_cosine(step, warmup=warmup, total=total, final=final) <= 1


def test_the_loss_of_energies_alone_is_their_weighted_mean() -> None:
    error = torch.tensor([0.3, -0.1], dtype=torch.float64)
    for kind, expected in (("mae", 0.5 * 0.2), ("mse", 0.5 * 0.05)):
        loss = LossConfig(energy=0.5, forces=0.0, kind=kind)  # type: ignore[arg-type]
        value = energy_force_loss(error, None, torch.tensor([3, 2]), loss)
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_energies_alone_are_learned_without_any_gradient_of_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of labelled structures, too: forces are neither computed nor compared."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("forces were computed")

    monkeypatch.setattr(torch.func, "grad", lambda *_, **__: refuse)
    structures = waters(4)
    network = tiny_network(irreps="8x0e+8x1o+8x2e")
    loss = LossConfig(energy=1.0, forces=0.0)
    module = ForceField(network, loss, OptimizationConfig(), total_steps=10)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: float(value.detach())})  # type: ignore[method-assign]
    batch = Collator(structures, network, forces=False)(range(4))
    value = module.training_step(batch, 0)
    value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    module.validation_step(batch, 0)
    assert set(logged) == {"train_loss", "val_loss", "val_energy_mae_meV"}
    assert logged["val_energy_mae_meV"] == pytest.approx(1e3 * value.item())
    with pytest.raises(AssertionError, match="forces were computed"):
        ForceField(network, LossConfig(), OptimizationConfig(), 10).training_step(
            Collator(structures, network)(range(4)), 0
        )


@pytest.mark.parametrize("structures", [waters(4), mixed(8)], ids=["dense", "mixed"])
def test_a_step_moves_every_parameter(structures: list[Structure]) -> None:
    network = tiny_network(irreps="8x0e+8x1o+8x2e")
    module = ForceField(network, LossConfig(), OptimizationConfig(), total_steps=10)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    loss = module.training_step(Collator(structures, network)(range(len(structures))), 0)
    loss.backward()
    still = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not torch.isfinite(parameter.grad).all()
    }
    assert loss.dtype == torch.float64
    assert still == set()


def test_loss_of_a_batch_does_not_depend_on_padding() -> None:
    network = tiny_network().double()
    module = ForceField(network, LossConfig(energy=0.0), OptimizationConfig(), total_steps=10)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    water, hydroxyl, atom, _ = mixed(4)

    def total(*structures: Structure) -> float:
        batch = Collator(list(structures), network)(range(len(structures)))
        return module.training_step(batch, 0).item() * sum(map(len, structures))

    apart = total(water) + total(hydroxyl) + total(atom)
    # Each padded atom adds the floor of the norm, 1e-8 eV/Å.
    assert total(water, hydroxyl, atom) == pytest.approx(apart, abs=1e-7)


def test_the_optimizer_is_adamw_with_the_schedule_per_step() -> None:
    settings = OptimizationConfig(learning_rate=1e-2, warmup_steps=5, weight_decay=0.1)
    module = ForceField(tiny_network(), LossConfig(), settings, total_steps=10)
    (optimizer,), (schedule,) = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert schedule["interval"] == "step"
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.1
    assert group["lr"] == pytest.approx(1e-2 / 5)
