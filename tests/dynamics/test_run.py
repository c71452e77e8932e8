"""Runs of the compiled loop: against ASE, against themselves after a kill, and when they go wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from equibit import engine
from equibit.dynamics import DynamicsSettings, foresee, initial_velocities, run_dynamics
from equibit.engine import _native  # type: ignore[attr-defined]
from equibit.interfaces.ase import Calculator
from equibit.storage import read_container, write_container
from equibit.structures import ConfigError, FileFormatError, ModelError, Structure, StructureError
from equibit.structures.formats import StructureWriter, read_structures

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

DATA = Path(__file__).parents[1] / "engine" / "data"
MODEL = DATA / "ethanol-fp32-v1.safetensors"
LOW_BIT = DATA / "ethanol-w8a8-v1.safetensors"
KNOWN = json.loads((DATA / "ethanol-v1.json").read_text())
ETHANOL = Structure(KNOWN["numbers"], KNOWN["positions"][0])


def boxed() -> Structure:
    """A molecule across the boundary of a periodic cell, out of sight of its images."""
    return Structure(ETHANOL.numbers, ETHANOL.positions, cell=10.5 * np.eye(3), pbc=[True] * 3)


def settings(**changes: Any) -> DynamicsSettings:
    values = {"steps": 200, "sample_every": 10, "frame_every": 50, "temperature": 300.0}
    return DynamicsSettings(**(values | changes))


def columns(folder: Path) -> dict[str, np.ndarray]:
    lines = (folder / "samples.csv").read_text().splitlines()
    table = np.array([[float(x) for x in line.split(",")] for line in lines[1:]])
    return dict(zip(lines[0].split(","), table.T, strict=True))


@pytest.mark.parametrize("structure", [ETHANOL, boxed()], ids=["molecule", "cell"])
def test_takes_the_steps_that_ase_takes(tmp_path: Path, structure: Structure) -> None:
    result = run_dynamics(MODEL, structure, settings(), tmp_path)
    atoms = Atoms(
        structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc
    )
    velocities = initial_velocities(structure, 300.0, seed=0)
    atoms.set_velocities(velocities / units.fs)
    atoms.calc = Calculator(engine.load(MODEL))
    VelocityVerlet(atoms, timestep=0.5 * units.fs).run(200)
    last = read_structures(result.trajectory)[-1]
    assert np.abs(last.positions - structure.positions).max() > 1e-2
    # ASE's units follow another edition of CODATA; that is all that differs.
    np.testing.assert_allclose(last.positions, atoms.positions, atol=1e-6)
    assert last.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert last.info == {"step": 200, "time_ps": 0.1}


def test_the_energy_error_falls_with_the_square_of_the_time_step(tmp_path: Path) -> None:
    spread = {}
    for dt in (0.5, 1.0):
        folder = tmp_path / str(dt)
        run_dynamics(MODEL, ETHANOL, settings(timestep=dt, steps=round(200 / dt)), folder)
        samples = columns(folder)
        total = samples["potential_ev"] + samples["kinetic_ev"]
        spread[dt] = total.std()
        assert samples["kinetic_ev"].std() > 20 * total.std()
    assert 3.0 < spread[1.0] / spread[0.5] < 5.0


def test_langevin_keeps_the_temperature_and_counts_its_heat(tmp_path: Path) -> None:
    chosen = settings(ensemble="langevin", friction=50.0, steps=40_000, frame_every=20_000)
    result = run_dynamics(MODEL, boxed(), chosen, tmp_path)
    assert result.collapse is None
    assert result.temperature == pytest.approx(300.0, rel=0.05)
    samples = columns(tmp_path)
    conserved = samples["potential_ev"] + samples["kinetic_ev"] - samples["heat_ev"]
    assert samples["heat_ev"].std() > 20 * conserved.std()
    other = run_dynamics(
        MODEL, boxed(), settings(ensemble="langevin", friction=50.0, seed=1), tmp_path / "other"
    )
    same = run_dynamics(
        MODEL, boxed(), settings(ensemble="langevin", friction=50.0), tmp_path / "same"
    )
    assert other.temperature != same.temperature


def test_an_outer_force_is_what_is_conserved(tmp_path: Path) -> None:
    plain = settings(steps=2000)
    for name, outer, inner_steps in (("alone", None, 1), ("corrected", MODEL, 2)):
        chosen = settings(steps=2000, outer=outer, inner_steps=inner_steps)
        result = run_dynamics(LOW_BIT, ETHANOL, chosen, tmp_path / name)
        assert result.outer_model == (None if outer is None else "fp32")
    run_dynamics(MODEL, ETHANOL, plain, tmp_path / "float")
    potential = {n: columns(tmp_path / n)["potential_ev"] for n in ("alone", "corrected", "float")}
    assert potential["corrected"][0] == potential["float"][0] != potential["alone"][0]
    near = np.abs(potential["corrected"] - potential["float"])[:10].max()
    far = np.abs(potential["alone"] - potential["float"])[:10].max()
    assert near < 0.1 * far
    total = {n: potential[n] + columns(tmp_path / n)["kinetic_ev"] for n in potential}
    assert total["corrected"].std() < total["alone"].std()


def test_the_same_model_as_outer_force_changes_nothing(tmp_path: Path) -> None:
    run_dynamics(MODEL, ETHANOL, settings(), tmp_path / "plain")
    run_dynamics(MODEL, ETHANOL, settings(inner_steps=5, outer=MODEL), tmp_path / "outer")
    for name, values in columns(tmp_path / "plain").items():
        assert (values == columns(tmp_path / "outer")[name]).all(), name


def test_threads_change_no_bit(tmp_path: Path) -> None:
    crowd = Structure(
        np.tile(ETHANOL.numbers, 40),
        np.concatenate([ETHANOL.positions + np.array([9.0 * k, 0, 0]) for k in range(40)]),
    )
    for threads in (1, 2):
        run_dynamics(MODEL, crowd, settings(threads=threads), tmp_path / str(threads))
    for name in ("trajectory.xyz", "samples.csv"):
        one, two = (tmp_path / str(threads) / name for threads in (1, 2))
        assert one.read_bytes() == two.read_bytes()


KILLED = """
import sys
import time
from equibit.dynamics import DynamicsSettings, run_dynamics
from tests.dynamics.test_run import boxed
settings = DynamicsSettings(**eval(sys.argv[3]))
run_dynamics(
    sys.argv[1], boxed(), settings, sys.argv[2], watch=lambda status: time.sleep(0.01)
)
"""


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
def test_a_killed_run_goes_on_to_the_last_bit(
    tmp_path: Path,
    ensemble: str,
) -> None:
    values = {
        "steps": 20_000,
        "sample_every": 20,
        "frame_every": 200,
        "ensemble": ensemble,
        "checkpoint_seconds": 0.0,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_dynamics(MODEL, boxed(), DynamicsSettings(**values), whole)
    checkpoint = killed / "checkpoint.safetensors"
    for at in (300, 1500):  # twice, the second time a resumed run
        process = subprocess.Popen([sys.executable, "-c", KILLED, MODEL, killed, repr(values)])
        while process.poll() is None and _step(checkpoint) < at:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "finished before it was killed"
        assert not (killed / "trajectory.xyz").exists()
    assert 1500 <= _step(checkpoint) < 20_000
    result = run_dynamics(MODEL, boxed(), DynamicsSettings(**values), killed)
    assert result.resumed
    for name in ("trajectory.xyz", "samples.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    ends = [read_container(f / "checkpoint.safetensors", kind="dynamics") for f in (whole, killed)]
    assert ends[0].tensors["velocities"].tobytes() == ends[1].tensors["velocities"].tobytes()


def _step(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return int(read_container(checkpoint, kind="dynamics").header["step"])


def test_ctrl_c_leaves_a_checkpoint(tmp_path: Path) -> None:
    seen = []

    def stop(status: Any) -> None:
        seen.append(status.step)
        if status.step >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_dynamics(MODEL, ETHANOL, settings(), tmp_path, watch=stop)
    assert _step(tmp_path / "checkpoint.safetensors") == seen[-1] < 200
    result = run_dynamics(MODEL, ETHANOL, settings(), tmp_path)
    assert result.resumed
    assert result.steps == 200
    assert run_dynamics(MODEL, ETHANOL, settings(), tmp_path).drift == result.drift


def test_a_kill_at_the_very_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(writer: StructureWriter, *_: object) -> None:
        writer._file.close()
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(StructureWriter, "__exit__", killed)
        with pytest.raises(MemoryError):
            run_dynamics(MODEL, ETHANOL, settings(), tmp_path)
    assert not (tmp_path / "trajectory.xyz").exists()
    result = run_dynamics(MODEL, ETHANOL, settings(), tmp_path)
    assert len(read_structures(result.trajectory)) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ensemble": "langevin", "trajectory_format": "traj"},
        {"outer": LOW_BIT, "inner_steps": 5, "frame_every": 60},
    ],
    ids=["nve", "langevin", "outer"],
)
def test_more_steps_prolong_a_run_to_the_last_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also where the longer run is interrupted, and where its last frame was none of the shorter."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    run_dynamics(MODEL, boxed(), settings(**changes, steps=600), once)
    short = run_dynamics(MODEL, boxed(), settings(**changes, steps=250), twice)
    before = {path.name: path.read_bytes() for path in twice.iterdir()}

    def stop(status: Any) -> None:
        if status.step >= 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_dynamics(MODEL, boxed(), settings(**changes, steps=600), twice, watch=stop)
    kept = ("samples.csv", "dynamics.json", Path(short.trajectory).name)
    assert all((twice / name).read_bytes() == before[name] for name in kept)
    assert 400 <= _step(twice / "checkpoint.safetensors") < 600
    with pytest.raises(ConfigError, match=r"more than the 250 asked for.*--restart"):
        run_dynamics(MODEL, boxed(), settings(**changes, steps=250), twice)
    result = run_dynamics(MODEL, boxed(), settings(**changes, steps=600), twice)
    assert (result.steps, result.settings["steps"], result.resumed) == (600, 600, True)
    for name in ("samples.csv", Path(result.trajectory).name):
        assert (twice / name).read_bytes() == (once / name).read_bytes(), name
    ends = [read_container(f / "checkpoint.safetensors", kind="dynamics") for f in (once, twice)]
    assert ends[0].tensors["velocities"].tobytes() == ends[1].tensors["velocities"].tobytes()
    assert not list(twice.glob(".*"))


def test_a_run_is_prolonged_only_as_it_was_begun(tmp_path: Path) -> None:
    run_dynamics(MODEL, ETHANOL, settings(), tmp_path)
    for changes in ({"seed": 1}, {"timestep": 0.25}, {"sample_every": 25}):
        ((name, value),) = changes.items()
        said = rf"another run \({name} [\d.]+ there, {value} here\)"
        with pytest.raises(ConfigError, match=said):
            run_dynamics(MODEL, ETHANOL, settings(steps=400, **changes), tmp_path)
    with pytest.raises(ConfigError, match=r"another run \(other model or structure\)"):
        run_dynamics(LOW_BIT, ETHANOL, settings(steps=400), tmp_path)
    with pytest.raises(ConfigError, match="holds 200 steps of this run, more than the 100 asked"):
        run_dynamics(MODEL, ETHANOL, settings(steps=100), tmp_path)
    outlook = foresee(MODEL, ETHANOL, settings(steps=400), tmp_path)
    assert outlook.steps_done == 200
    whole = foresee(MODEL, ETHANOL, settings(steps=400), tmp_path, resume=False)
    assert whole.steps_done == 0


@pytest.mark.parametrize("moment", ["before the first checkpoint", "before the renaming"])
def test_a_kill_while_a_run_is_prolonged_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    run_dynamics(MODEL, ETHANOL, settings(steps=400), once)
    run_dynamics(MODEL, ETHANOL, settings(), twice)

    def killed(writer: StructureWriter, *_: object) -> None:
        writer._file.close()
        raise MemoryError

    def stop(status: Any) -> None:
        if moment == "before the first checkpoint" and status.step >= 300:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(StructureWriter, "__exit__", killed)
        with pytest.raises(MemoryError):
            run_dynamics(MODEL, ETHANOL, settings(steps=400), twice, watch=stop)
    assert len(read_structures(twice / "trajectory.xyz")) == 5
    assert list(twice.glob(".*.part"))
    run_dynamics(MODEL, ETHANOL, settings(steps=400), twice)
    for name in ("trajectory.xyz", "samples.csv"):
        assert (twice / name).read_bytes() == (once / name).read_bytes(), name


def test_a_lost_trajectory_is_said(tmp_path: Path) -> None:
    run_dynamics(MODEL, ETHANOL, settings(), tmp_path)
    other = run_dynamics(MODEL, ETHANOL, settings(trajectory_format="traj"), tmp_path)
    frames = [read_structures(tmp_path / n) for n in ("trajectory.xyz", other.trajectory)]
    assert [len(f) for f in frames] == [5, 5]
    assert (frames[0][-1].positions == frames[1][-1].positions).all()
    for name in ("trajectory.xyz", other.trajectory):
        (tmp_path / name).unlink()
    with pytest.raises(FileFormatError, match=r"has 0 of the 5 frames.*--restart"):
        run_dynamics(MODEL, ETHANOL, settings(steps=400), tmp_path)


def test_another_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    run_dynamics(MODEL, ETHANOL, settings(), tmp_path)
    with pytest.raises(ConfigError, match=r"another run.*--restart"):
        run_dynamics(MODEL, ETHANOL, settings(seed=1), tmp_path)
    again = run_dynamics(MODEL, ETHANOL, settings(seed=1), tmp_path, resume=False)
    assert not again.resumed
    path = tmp_path / "checkpoint.safetensors"
    container = read_container(path, kind="dynamics")
    write_container(path, container.tensors, container.header | {"kernels": "abacus"})
    with pytest.raises(ConfigError, match="abacus"):
        run_dynamics(MODEL, ETHANOL, settings(seed=1), tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileFormatError, match="truncated"):
        run_dynamics(MODEL, ETHANOL, settings(seed=1), tmp_path)


def test_a_collapse_is_said_and_what_came_before_is_kept(tmp_path: Path) -> None:
    chosen = settings(timestep=20.0, steps=2000)
    result = run_dynamics(MODEL, ETHANOL, chosen, tmp_path)
    assert result.collapse is not None
    assert re.search("broke|kinetic energy", result.collapse.reason)
    assert result.steps == result.collapse.step < 2000
    saved = json.loads((tmp_path / "dynamics.json").read_text())
    assert saved["collapse"]["reason"] == result.collapse.reason
    assert (tmp_path / "dynamics.png").stat().st_size > 10_000
    assert run_dynamics(MODEL, ETHANOL, chosen, tmp_path).collapse == result.collapse


def test_atoms_that_meet_end_the_run(tmp_path: Path) -> None:
    """Two hydrogens flying at each other, and no bond to break before they coincide."""
    pair = Structure([1, 1], [[0.0, 0, 0], [0.6, 0, 0]])
    potential = engine.load(MODEL)
    loop = _native.Dynamics(
        model=potential.compiled,
        outer=None,
        species=np.zeros(2, np.int32),
        cell=None,
        periodic=[False] * 3,
        skin=0.5,
        threads=1,
        masses=np.array([1.0, 1.0]),
        timestep=1.0,
        inner_steps=1,
        friction=0.0,
        temperature=0.0,
        seed=0,
        bonds=np.zeros((0, 2), np.int32),
        shifts=np.zeros((0, 3)),
        kinds=np.zeros(0, np.int32),
        longest=np.zeros(0),
        most_kinetic=1e9,
        positions=pair.positions,
        velocities=np.array([[0.15, 0, 0], [-0.15, 0, 0]]),
        step=0,
        heat=0.0,
    )
    held, _ = loop.run(10, 1)
    assert not held
    assert "fell onto each other" in loop.reason
    assert loop.step == 2


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "md"
    outlook = foresee(MODEL, ETHANOL, settings(), folder)
    assert outlook.microseconds_per_step > 1
    assert outlook.frames == 5
    assert outlook.picoseconds == pytest.approx(0.1)
    assert not folder.exists()


def test_ase_trajectories(tmp_path: Path) -> None:
    result = run_dynamics(MODEL, ETHANOL, settings(trajectory_format="traj"), tmp_path)
    assert len(read_structures(result.trajectory)) == 5
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("form", ["extxyz", "traj"])
def test_ase_finds_the_velocities_of_every_frame(tmp_path: Path, form: str) -> None:
    chosen = settings(steps=50, sample_every=10, frame_every=10, trajectory_format=form)
    result = run_dynamics(MODEL, ETHANOL, chosen, tmp_path)
    frames = ase.io.read(result.trajectory, ":")
    velocities = initial_velocities(ETHANOL, 300.0, seed=0)
    np.testing.assert_allclose(frames[0].get_velocities() * units.fs, velocities, rtol=1e-7)
    kinetic = [frame.get_kinetic_energy() for frame in frames]
    np.testing.assert_allclose(kinetic, columns(tmp_path)["kinetic_ev"], rtol=1e-7)


def test_bonds_across_a_boundary_are_watched(tmp_path: Path) -> None:
    """A molecule cut by the wall of its cell has the bonds of a whole one, and they can break."""
    whole = boxed()
    cut = Structure(whole.numbers, whole.positions % 10.5, cell=whole.cell, pbc=whole.pbc)
    assert np.ptp(cut.positions, axis=0).max() > 9
    for name, structure in (("whole", whole), ("cut", cut)):
        run_dynamics(MODEL, structure, settings(), tmp_path / name)
    for name, values in columns(tmp_path / "whole").items():
        if name.endswith("angstrom"):
            np.testing.assert_allclose(columns(tmp_path / "cut")[name], values, atol=1e-6)
    hot = settings(temperature=20_000.0, steps=2000)
    collapse = run_dynamics(MODEL, cut, hot, tmp_path / "hot").collapse
    assert collapse is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 205}, "multiple of sample_every"),
        ({"inner_steps": 3, "outer": MODEL}, "multiple of inner_steps"),
        ({"inner_steps": 2}, "need an outer model"),
        ({"trajectory_format": "pdb"}, "not pdb"),
        ({"threads": 0}, "threads is 0"),
        ({"timestep": float("nan")}, "timestep is nan"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"ensemble": "npt"}, "expected nve or langevin"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_bad_input_is_named_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "md"
    with pytest.raises(ModelError, match="atom 1 is F"):
        run_dynamics(MODEL, Structure([1, 9], [[0, 0, 0], [1, 0, 0]]), settings(), folder)
    with pytest.raises(StructureError, match="atom 0 and atom 1 coincide"):
        run_dynamics(MODEL, Structure([1, 1], [[0, 0, 0], [0.01, 0, 0]]), settings(), folder)
    assert not folder.exists()
