"""The writer for long outputs: kills, torn frames, other jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.structures.strategies import assert_same

from equibit.storage import WriteError
from equibit.structures import FileFormatError, Structure, StructureError
from equibit.structures.formats import StructureWriter, read_structures

FRAMES = [
    Structure([1, 8], [[0.1 * k, 0, 0], [1, 1, 1 / 3]], energy=-k / 7, info={"k": k})
    for k in range(4)
]


def kill_after(path: Path, count: int, job: str = "job") -> Path:
    writer = StructureWriter(path, job=job)
    with pytest.raises(KeyboardInterrupt), writer:
        for frame in FRAMES[writer.written : count]:
            writer.write(frame)
        raise KeyboardInterrupt
    return writer.part


def test_a_full_disk_names_the_file_and_keeps_what_was_written(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the error comes with flushing, too."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "out.xyz"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"out\.xyz.*free some space.*goes on after 2 structures"
    with pytest.raises(WriteError, match=message), StructureWriter(path, job="job") as writer:
        writer.write(FRAMES[0])
        writer.write(FRAMES[1])
        full = writer.part.stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        writer.write(FRAMES[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with StructureWriter(path, job="job") as writer:
        assert writer.written == 2
        writer.write(FRAMES[2])


def test_a_missing_folder_is_said_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.xyz"
    message = r"there is no folder .*none; create it first"
    with pytest.raises(WriteError, match=message), StructureWriter(path):
        pass


@pytest.mark.parametrize("suffix", ["xyz", "npz", "traj", "db"])
def test_a_killed_run_goes_on(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    kill_after(path, 2)
    assert not path.exists()
    with StructureWriter(path, job="job") as writer:
        assert writer.written == 2
        for frame in FRAMES[2:]:
            writer.write(frame)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for one, other in zip(read_structures(path), FRAMES, strict=True):
        assert_same(one, other)


def test_a_torn_frame_is_written_again_wherever_it_tore(tmp_path: Path) -> None:
    path = tmp_path / "out.xyz"
    part = kill_after(path, 2)
    whole = part.read_bytes()
    first = whole.index(b"\n2\n") + 1
    for cut in range(first + 1, len(whole)):
        part.write_bytes(whole[:cut])
        with pytest.raises(KeyboardInterrupt), StructureWriter(path, job="job") as writer:
            assert writer.written == 1, cut
            writer.write(FRAMES[1])
            raise KeyboardInterrupt
        assert part.read_bytes() == whole


def test_another_job_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.xyz"
    kill_after(path, 2)
    with StructureWriter(path, job="another") as writer:
        assert writer.written == 0
        writer.write(FRAMES[0])
    assert [p.name for p in tmp_path.iterdir()] == ["out.xyz"]


def test_without_resume_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.xyz"
    kill_after(path, 2)
    with StructureWriter(path, job="job", resume=False) as writer:
        assert writer.written == 0
        writer.write(FRAMES[3])
    assert len(read_structures(path)) == 1


def test_an_old_result_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.xyz"
    path.write_text("old")
    kill_after(path, 2)
    assert path.read_text() == "old"


def test_a_foreign_part_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.xyz"
    kill_after(path, 1).write_text("something else\n")
    with pytest.raises(FileFormatError, match="delete it"), StructureWriter(path, job="job"):
        pass


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="no structures"), StructureWriter(tmp_path / "o.xyz"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_bad_outputs_are_refused_before_the_work(tmp_path: Path) -> None:
    from equibit.storage import WriteError

    with pytest.raises(FileFormatError, match="unknown suffix"):
        StructureWriter(tmp_path / "out.cif")
    with pytest.raises(WriteError), StructureWriter(tmp_path / "nowhere" / "out.xyz"):
        pass
