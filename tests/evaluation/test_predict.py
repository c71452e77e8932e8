"""Streaming predictions: every format, interruption, bad structures, nothing half-written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.toy import MorsePotential, copper, molecule

from equibit.evaluation.predict import predict_file
from equibit.structures import FileFormatError, ModelError, Prediction, Structure, StructureError
from equibit.structures.formats.api import read_structures, write_structures

POTENTIAL = MorsePotential()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.xyz"
    write_structures(path, [replace(molecule(k), info={"tag": k}) for k in range(10)])
    return path


def _assert_predicted(path: Path, expected: list[Structure]) -> None:
    got = read_structures(path)
    assert len(got) == len(expected)
    for structure, original in zip(got, expected, strict=True):
        prediction = POTENTIAL.compute([original])[0]
        np.testing.assert_array_equal(structure.positions, original.positions)
        assert structure.energy == pytest.approx(prediction.energy, rel=1e-14)
        np.testing.assert_allclose(structure.forces, prediction.forces, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".traj", ".db", ".npz"])
def test_every_format_in_and_out(tmp_path: Path, suffix: str) -> None:
    structures = [molecule(k) for k in range(5)]
    source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_structures(source, structures)
    run = predict_file(POTENTIAL, source, output, batch_size=2)
    assert (run.written, run.resumed, run.skipped) == (5, 0, ())
    _assert_predicted(output, structures)
    assert sorted(tmp_path.iterdir()) == [source, output]


def test_info_is_kept_and_labels_replaced(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.xyz"
    predict_file(POTENTIAL, source, output)
    twice = tmp_path / "twice.xyz"
    predict_file(replace(POTENTIAL, depth=2.0), output, twice)
    once, again = read_structures(output), read_structures(twice)
    assert [s.info["tag"] for s in again] == list(range(10))
    assert again[3].energy == pytest.approx(2 * once[3].energy)


def test_stress_only_where_there_is_a_cell(tmp_path: Path) -> None:
    mixed = [molecule(0), copper(), molecule(1)]
    source, output, plain = tmp_path / "in.xyz", tmp_path / "out.xyz", tmp_path / "plain.xyz"
    write_structures(source, mixed)
    predict_file(POTENTIAL, source, output)
    stresses = [s.stress for s in read_structures(output)]
    assert stresses[0] is None
    assert stresses[2] is None
    expected = POTENTIAL.compute([copper()], stress=True)[0].stress
    np.testing.assert_allclose(stresses[1], expected, rtol=1e-12, atol=1e-15)
    predict_file(POTENTIAL, source, plain, stress=False)
    assert all(s.stress is None for s in read_structures(plain))


@dataclass(frozen=True)
class _Dying(MorsePotential):
    """Interrupted at the n-th call, as by Ctrl-C."""

    allowed: int = 2
    calls: list[int] = field(default_factory=list)

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        if len(self.calls) == self.allowed:
            raise KeyboardInterrupt
        self.calls.append(len(structures))
        return super().compute(structures, forces=forces, stress=stress)


def test_interrupted_run_goes_on(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.traj"
    with pytest.raises(KeyboardInterrupt):
        predict_file(_Dying(allowed=2), source, output, batch_size=3)
    assert not output.exists()
    rest = _Dying(allowed=100)
    run = predict_file(rest, source, output, batch_size=3)
    assert (run.written, run.resumed) == (10, 6)
    assert sum(rest.calls) == 4
    _assert_predicted(output, [molecule(k) for k in range(10)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.xyz", "out.traj"]


@pytest.mark.parametrize("change", ["model", "input", "restart"])
def test_a_changed_job_starts_anew(source: Path, tmp_path: Path, change: str) -> None:
    output = tmp_path / "out.xyz"
    with pytest.raises(KeyboardInterrupt):
        predict_file(_Dying(allowed=2), source, output, batch_size=3)
    potential: MorsePotential = _Dying(allowed=100)
    if change == "model":
        potential = replace(potential, recipe="w4a8")
    if change == "input":
        write_structures(source, [molecule(k + 50) for k in range(10)])
    run = predict_file(potential, source, output, batch_size=3, resume=change != "restart")
    assert run.resumed == 0
    assert run.written == 10


def _with_bad(tmp_path: Path) -> Path:
    structures = [molecule(k) for k in range(8)]
    structures[0] = Structure([9], [[0.0, 0, 0]])
    structures[4] = replace(structures[4], positions=np.zeros((6, 3)))
    structures[5] = Structure([9], [[0.0, 0, 0]])
    path = tmp_path / "bad.xyz"
    write_structures(path, structures)
    return path


def test_bad_structures_stop_by_default(tmp_path: Path) -> None:
    source, output = _with_bad(tmp_path), tmp_path / "out.xyz"
    output.write_text("old")
    with pytest.raises(
        ModelError, match=r"bad\.xyz, structure 0: atom 0 has atomic number 9.*--skip-bad"
    ):
        predict_file(POTENTIAL, source, output)
    assert output.read_text() == "old"


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_bad_structures_are_skipped_and_listed(tmp_path: Path, batch_size: int) -> None:
    source, output = _with_bad(tmp_path), tmp_path / "out.xyz"
    run = predict_file(POTENTIAL, source, output, skip_bad=True, batch_size=batch_size)
    assert run.written == 5
    assert [s.index for s in run.skipped] == [0, 4, 5]
    assert run.skipped_list is not None
    listed = json.loads(Path(run.skipped_list).read_text())
    assert [entry["index"] for entry in listed] == [0, 4, 5]
    assert "coincide" in listed[1]["reason"]
    _assert_predicted(output, [molecule(k) for k in (1, 2, 3, 6, 7)])


def _with_damaged(tmp_path: Path) -> Path:
    """As ``_with_bad``, with the bad structures damaged in the file."""
    path = tmp_path / "bad.xyz"
    for k in range(8):
        write_structures(path, [molecule(k)])
        frame = path.read_text()
        with (tmp_path / "all").open("a") as file:
            file.write(frame.replace("pos:R:3", "pos:R:2") if k in (0, 4, 5) else frame)
    (tmp_path / "all").rename(path)
    return path


@pytest.mark.parametrize("with_bad", [_with_bad, _with_damaged])
@pytest.mark.parametrize("batch_size", [2, 3, 5])
@pytest.mark.parametrize("allowed", range(1, 13))
def test_skipping_survives_interruption_anywhere(
    tmp_path: Path, allowed: int, batch_size: int, with_bad: Callable[[Path], Path]
) -> None:
    source, output = with_bad(tmp_path), tmp_path / "out.xyz"
    with contextlib.suppress(KeyboardInterrupt):
        predict_file(_Dying(allowed=allowed), source, output, skip_bad=True, batch_size=batch_size)
    run = predict_file(_Dying(allowed=100), source, output, skip_bad=True, batch_size=batch_size)
    assert [s.index for s in run.skipped] == [0, 4, 5]
    _assert_predicted(output, [molecule(k) for k in (1, 2, 3, 6, 7)])


def test_nothing_predictable_writes_nothing(tmp_path: Path) -> None:
    source, output = tmp_path / "in.xyz", tmp_path / "out.xyz"
    write_structures(source, [Structure([9], [[0.0, 0, 0]])] * 2)
    with pytest.raises(StructureError, match="none of the 2 structures"):
        predict_file(POTENTIAL, source, output, skip_bad=True)
    assert list(tmp_path.iterdir()) == [source]


def test_files_that_cannot_serve(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is the input"):
        predict_file(POTENTIAL, source, source)
    with pytest.raises(FileFormatError, match=r"missing\.xyz"):
        predict_file(POTENTIAL, tmp_path / "missing.xyz", tmp_path / "out.xyz")
    with pytest.raises(FileFormatError, match=r"\.pdb"):
        predict_file(POTENTIAL, source, tmp_path / "out.pdb")
    text = source.read_text()
    source.write_text(text[: int(0.75 * len(text))])
    with pytest.raises(FileFormatError, match="frame"):
        predict_file(POTENTIAL, source, tmp_path / "out.xyz")
    assert not (tmp_path / "out.xyz").exists()


@pytest.mark.parametrize("suffix", [".xyz", ".traj", ".db", ".npz"])
def test_progress_counts_structures(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"in{suffix}"
    write_structures(source, [molecule(k) for k in range(10)])
    calls: list[tuple[int, int | None]] = []
    predict_file(
        POTENTIAL, source, tmp_path / "out.xyz", batch_size=4,
        progress=lambda stage, done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(0, 10), (4, 10), (8, 10), (10, 10)]
