"""Making a set: plans, resuming, skipping, the file it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equibit.datasets import generate as generation
from equibit.datasets.generate import (
    GenerationSettings,
    GenerationState,
    describe,
    generate,
    parts_folder,
    trajectories,
    write_set,
)
from equibit.datasets.labels import LabelError, XtbLabeller
from equibit.datasets.sampling import SamplingSettings
from equibit.structures.errors import DatasetError
from equibit.structures.formats import read_structures

TINY = GenerationSettings(
    molecule="water",
    method="gfn2-xtb",
    n_train=5,
    n_test=2,
    seed=3,
    frames_per_trajectory=3,
    sampling=SamplingSettings(equilibration=5.0, spacing=2.0),
)


class _Inline:
    """A pool of no processes; every job runs when it is handed in."""

    def __init__(self, settings: GenerationSettings, start: Any) -> None:
        generation._start_worker(settings, start.numbers, start.positions)

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(job(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None:
        pass


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("tblite")
    monkeypatch.setattr(generation, "_pool", lambda _, settings, start: _Inline(settings, start))
    monkeypatch.setattr(generation, "_shared", {})
    return


def _count_labels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the labeller was really called, in the list's only item."""
    calls = [0]
    original = XtbLabeller.label

    def counted(self: XtbLabeller, positions: Any) -> Any:
        calls[0] += 1
        return original(self, positions)

    monkeypatch.setattr(XtbLabeller, "label", counted)
    return calls


@given(st.integers(0, 300), st.integers(0, 90), st.integers(1, 64), st.integers(0, 5))
def test_trajectories_share_out_the_frames(n_train, n_test, longest, seed):
    if n_train + n_test == 0:
        return
    settings = replace(
        TINY, n_train=n_train, n_test=n_test, frames_per_trajectory=longest, seed=seed
    )
    planned = trajectories(settings)
    for split, wanted in (("train", n_train), ("test", n_test)):
        assert sum(t.n_frames for t in planned if t.split == split) == wanted
    assert all(0 < t.n_frames <= longest for t in planned)
    # One seed in two trajectories would put the same frames into both splits.
    assert len({t.seed for t in planned}) == len(planned)


def test_a_larger_set_keeps_the_seeds_of_a_smaller_one():
    small = {(t.split, t.index): t.seed for t in trajectories(TINY)}
    large = {(t.split, t.index): t.seed for t in trajectories(replace(TINY, n_train=50, n_test=9))}
    assert small.items() <= large.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_train": -1}, "n_train must not be negative"),
        ({"n_train": 0, "n_test": 0}, "nothing to generate"),
        ({"frames_per_trajectory": 0}, "frames_per_trajectory"),
        ({"licence": "mine"}, "licence"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(DatasetError, match=message):
        replace(TINY, **change)


def test_makes_a_consistent_set(inline, tmp_path):
    states: list[GenerationState] = []
    made = generate(TINY, tmp_path / "parts", progress=states.append)
    assert made.positions.shape == made.forces.shape == (7, 3, 3)
    assert made.energies.shape == (7,)
    assert made.splits["train"].tolist() == [0, 1, 2, 3, 4]
    assert made.splits["test"].tolist() == [5, 6]
    np.testing.assert_array_equal(
        made.positions, made.positions.astype(np.float32).astype(np.float64)
    )
    direct = XtbLabeller("gfn2-xtb", made.numbers).label(made.positions[6])
    assert made.energies[6] == pytest.approx(direct.energy, abs=1e-9)
    np.testing.assert_allclose(made.forces[6], direct.forces, atol=1e-8)

    assert states[0].labelled == 0
    assert (states[-1].sampled, states[-1].labelled, states[-1].total) == (7, 7, 7)
    assert [s.labelled for s in states] == sorted(s.labelled for s in states)
    figures = describe(made)
    assert (figures.n_train, figures.n_test) == (5, 2)
    assert figures.net_force_max_mev < 0.1 < figures.force_max


def test_goes_on_after_a_kill(inline, tmp_path, monkeypatch):
    whole = generate(TINY, tmp_path / "uninterrupted")
    calls = _count_labels(monkeypatch)

    def kill(state: GenerationState) -> None:
        if state.labelled == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(TINY, tmp_path / "parts", progress=kill)
    assert calls == [4]
    labels = tmp_path / "parts" / generation.LABELS_FILE
    with labels.open("a") as file:
        file.write('\n{"key": "cut sho')

    states: list[GenerationState] = []
    resumed = generate(TINY, tmp_path / "parts", progress=states.append)
    assert calls == [7]
    assert states[-1].found == 4
    np.testing.assert_array_equal(resumed.positions, whole.positions)
    np.testing.assert_allclose(resumed.energies, whole.energies, atol=1e-9)
    np.testing.assert_allclose(resumed.forces, whole.forces, atol=1e-8)

    generate(TINY, tmp_path / "parts")
    assert calls == [7]


def test_a_spoilt_trajectory_file_is_sampled_again(inline, tmp_path):
    first = generate(TINY, tmp_path)
    victim = sorted(tmp_path.glob("train-*.npy"))[0]
    victim.write_bytes(victim.read_bytes()[:70])
    np.testing.assert_array_equal(generate(TINY, tmp_path).positions, first.positions)


def test_a_larger_set_reuses_labels(inline, tmp_path, monkeypatch):
    generate(TINY, tmp_path)
    calls = _count_labels(monkeypatch)
    larger = generate(replace(TINY, n_test=3), tmp_path)
    assert len(larger.energies) == 8
    assert calls == [1]


def test_another_level_labels_the_same_geometries(inline, tmp_path):
    second = generate(TINY, tmp_path)
    first = generate(replace(TINY, method="gfn1-xtb"), tmp_path)
    np.testing.assert_array_equal(first.positions, second.positions)
    assert np.abs(first.forces - second.forces).max() > 1e-3


def test_frames_without_a_label_are_counted_and_left_out(inline, tmp_path, monkeypatch):
    original = XtbLabeller.label
    calls = [0]

    def fails_once(self: XtbLabeller, positions: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise LabelError("the SCF does not converge")
        return original(self, positions)

    monkeypatch.setattr(XtbLabeller, "label", fails_once)
    messages: list[str] = []
    made = generate(TINY, tmp_path, progress=lambda state: messages.append(state.message))
    assert made.skipped == 1
    assert len(made.energies) == sum(len(rows) for rows in made.splits.values()) == 6
    assert any("left out" in message for message in messages)
    assert generate(TINY, tmp_path).skipped == 0


def test_a_set_without_any_label_is_an_error(inline, tmp_path, monkeypatch):
    def fails(self: XtbLabeller, positions: Any) -> Any:
        raise LabelError("the SCF does not converge")

    monkeypatch.setattr(XtbLabeller, "label", fails)
    with pytest.raises(DatasetError, match="no frame could be labelled"):
        generate(TINY, tmp_path)


def test_parts_need_a_folder(inline, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DatasetError, match="taken"):
        generate(TINY, tmp_path / "taken")
    with pytest.raises(DatasetError, match="workers"):
        generate(TINY, tmp_path / "parts", workers=0)


def test_the_npz_has_the_layout_of_the_package(inline, tmp_path):
    made = generate(TINY, tmp_path / "parts")
    path = tmp_path / "water.npz"
    write_set(made, path)
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"z", "R", "E", "F", "split_train", "split_test", "meta"}
        assert file["z"].tolist() == [8, 1, 1]
        np.testing.assert_array_equal(file["R"], made.positions)
        np.testing.assert_array_equal(file["E"], made.energies)
        np.testing.assert_array_equal(file["F"], made.forces)
        assert file["E"].dtype == file["R"].dtype == np.float64
        meta = json.loads(str(file["meta"]))
    assert meta["level"] == "gfn2-xtb"
    assert meta["temperature_K"] == 500.0
    assert meta["units"] == {"R": "Å", "E": "eV", "F": "eV/Å"}
    assert meta["licence"] == "CC0-1.0"
    assert "tblite" in meta["software"]
    assert len(meta["trajectories"]) == 3
    read = read_structures(path)
    assert read[2].energy == made.energies[2]
    np.testing.assert_array_equal(read[2].forces, made.forces[2])


def test_the_extended_xyz_reads_back(inline, tmp_path):
    made = generate(TINY, tmp_path / "parts")
    path = tmp_path / "water.xyz"
    write_set(made, path)
    read = read_structures(path)
    assert [structure.info["split"] for structure in read] == ["train"] * 5 + ["test"] * 2
    np.testing.assert_allclose([structure.energy for structure in read], made.energies, atol=1e-6)
    np.testing.assert_allclose(read[3].positions, made.positions[3], atol=1e-7)
    np.testing.assert_allclose(read[3].forces, made.forces[3], atol=1e-7)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"must end in \.npz"):
        generation.check_output(tmp_path / "set.hdf5")
    assert parts_folder(Path("runs/set.npz")) == Path("runs/set.parts")
