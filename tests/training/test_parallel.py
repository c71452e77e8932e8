"""Several processes share a run; compiled steps are the eager ones. Both take a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.training.toy import config, label, mixed, tree, waters
from torch._dynamo.testing import CompileCounterWithBackend

from equibit.models.files import load_network
from equibit.networks.potential import energies_and_edge_gradients
from equibit.structures import Structure
from equibit.training.batches import Collator
from equibit.training.checkpoints import ContainerCheckpointIO
from equibit.training.module import energies_alone
from equibit.training.run import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CHECKOUT = Path(__file__).resolve().parents[2]

RANK_PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
from equibit.training import run
from equibit.training.config import load_config
from equibit.training.fit import is_main_process
original = run.fit
def kept(module, *arguments, **settings):
    result = original(module, *arguments, **settings)
    total = [float(p.double().sum()) for p in module.network.parameters()]
    rank = os.environ["RANK"]
    Path(sys.argv[2], f"rank{rank}.json").write_text(
        json.dumps({"weights": total, "main": is_main_process(), "metrics": result.metrics})
    )
    return result
run.fit = kept
run.train(load_config(Path(sys.argv[1])), progress=False)
"""


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *arguments,
    ]
    return subprocess.run(
        command,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    settings = tree(tmp_path, optimization__epochs=3, run__output=str(tmp_path / "two"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    program = tmp_path / "program.py"
    program.write_text(RANK_PROGRAM)
    process = torchrun(str(program), str(tmp_path / "run.yaml"), str(tmp_path))
    assert process.returncode == 0, process.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["main"] for rank in ranks] == [True, False]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["metrics"] == ranks[1]["metrics"]

    # 40 structures, 2 processes, batches of 5: 4 steps an epoch, as with batches of 10 alone.
    state = ContainerCheckpointIO().load_checkpoint(tmp_path / "two/checkpoints/last.safetensors")
    assert state["global_step"] == 12
    alone = config(
        tmp_path,
        optimization__epochs=3,
        optimization__batch_size=10,
        run__output=str(tmp_path / "one"),
    )
    expected = train(alone, progress=False).metrics
    for name in ("val_loss", "val_energy_mae_meV", "val_forces_mae_meV_A", "train_loss"):
        assert ranks[0]["metrics"][name] == pytest.approx(expected[name], rel=2e-3)


def test_the_command_under_torchrun_prints_once(tmp_path: Path) -> None:
    settings = tree(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    process = torchrun("-m", "equibit", "train", str(tmp_path / "run.yaml"), "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["model"].endswith("model.safetensors")
    load_network(tmp_path / "run")


@pytest.mark.parametrize("structures", ["one molecule", "mixed"])
def test_compiled_steps_equal_eager_ones(structures: str) -> None:
    from tests.networks.test_equivariant_transformer import tiny_network

    network = tiny_network(elements=(1, 8), layers=1)
    data = waters(6) if structures == "one molecule" else mixed(8)
    compiled = torch.compile(energies_and_edge_gradients, dynamic=structures == "mixed")
    collator = Collator(data, network)
    results = []
    for function in (energies_and_edge_gradients, compiled):
        network.zero_grad(set_to_none=True)
        batch = collator(range(len(data)))
        energies, gradients = function(network, batch.inputs)
        loss = energies.sum() + batch.inputs.graph.forces(gradients).square().sum()
        loss.backward()
        grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append((energies.detach(), gradients.detach(), *grads))
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=2e-4, atol=2e-5)


def test_molecules_of_all_sizes_share_what_is_compiled() -> None:
    """Energies alone, FP32: what is compiled for one size serves every other, degree 2 included."""
    from tests.networks.test_equivariant_transformer import tiny_network

    network = tiny_network(elements=(1, 8), irreps="8x0e+8x1o+8x2e", axial_messages=True, layers=2)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(energies_alone, backend=counter, dynamic=True)
    for size in (6, 7, 9):
        batch = Collator(chains(size, 4), network)(range(4)).inputs
        expected, _ = energies_alone(network, batch)
        torch.testing.assert_close(compiled(network, batch)[0], expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


def chains(n_atoms: int, count: int) -> list[Structure]:
    """Bent chains of hydrogen and oxygen."""
    generator = np.random.default_rng(n_atoms)
    line = np.stack([np.arange(n_atoms), np.arange(n_atoms) % 2, np.arange(n_atoms) % 3], 1)
    return label(
        [
            Structure(
                np.tile([8, 1], n_atoms)[:n_atoms],
                line + 0.05 * generator.standard_normal((n_atoms, 3)),
            )
            for _ in range(count)
        ]
    )


def test_a_compiled_run_follows_the_eager_one(tmp_path: Path) -> None:
    metrics = [
        train(
            config(tmp_path, run__compile=mode, run__output=str(tmp_path / mode)), progress=False
        ).metrics
        for mode in ("off", "on")
    ]
    assert metrics[1]["val_loss"] == pytest.approx(metrics[0]["val_loss"], rel=1e-3)
    assert metrics[1]["train_loss"] == pytest.approx(metrics[0]["train_loss"], rel=1e-3)
