"""Named sets, own files, and where they are looked for."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from equibit.datasets import Dataset, SplitSizes, load_dataset
from equibit.datasets.catalog import ENTRIES, RMD17_ARCHIVE, find_entry
from equibit.datasets.fetch import fetch
from equibit.datasets.locations import find
from equibit.structures import (
    DatasetError,
    FileFormatError,
    Structure,
    Units,
    UnitsError,
)
from equibit.structures.formats import write_structures
from equibit.structures.formats.npz import write_npz

KCAL = 0.043364104241800934
N = 60


@pytest.fixture(autouse=True)
def nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQUIBIT_DATA", raising=False)
    monkeypatch.setenv("EQUIBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EQUIBIT_OFFLINE", "1")


def water(k: int, energy: float | None = None) -> Structure:
    positions = [[0, 0, 0], [0.96, 0, 0], [0, 0.96 + 0.001 * k, 0]]
    return Structure([8, 1, 1], positions, energy=energy, forces=np.zeros((3, 3)))


def rmd17_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "nuclear_charges": np.array([8, 1, 1], np.uint8),
        "coords": rng.normal(size=(N, 3, 3)),
        "energies": rng.normal(size=N),
        "forces": rng.normal(size=(N, 3, 3)),
        "old_indices": np.arange(N),
    }


def splits() -> dict[str, np.ndarray]:
    order = np.random.default_rng(1).permutation(N)
    return {"train_idx_01": order[:40], "test_idx_01": order[40:55]}


@pytest.fixture
def edition(tmp_path: Path) -> Path:
    """A data folder with one file that also holds splits and the original labels."""
    root = tmp_path / "data"
    (root / "rmd17").mkdir(parents=True)
    arrays = rmd17_arrays() | splits()
    arrays["md17_energies_split01"] = np.arange(55.0)
    arrays["md17_forces_split01"] = np.ones((55, 3, 3))
    np.savez(root / "rmd17" / "rmd17_ethanol.npz", **arrays)
    return root


def public_archive(path: Path) -> None:
    """A small stand-in with the layout of rmd17.tar.bz2."""
    content = io.BytesIO()
    np.savez(content, **rmd17_arrays())
    tables = {
        f"rmd17/splits/index_{part}_01.csv": "\n".join(
            map(str, splits()[f"{part}_idx_01"])
        ).encode()
        for part in ("train", "test")
    }
    members = {"rmd17/npz_data/rmd17_ethanol.npz": content.getvalue(), **tables}
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:bz2") as archive:
        for name, data in {**members, "rmd17/readme.txt": b"hello"}.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))


def check_rmd17(dataset: Dataset) -> None:
    official = splits()
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert (train.size, validation.size) == (38, 2)
    assert sorted([*train, *validation]) == sorted(official["train_idx_01"])
    np.testing.assert_array_equal(dataset.splits["test"], official["test_idx_01"])
    first = dataset.subset("test")[0]
    k = official["test_idx_01"][0]
    assert first.energy == pytest.approx(rmd17_arrays()["energies"][k] * KCAL, rel=1e-14)
    np.testing.assert_array_equal(first.positions, rmd17_arrays()["coords"][k])
    assert dataset.labels == "rmd17"


def test_rmd17_with_splits_inside(edition: Path) -> None:
    check_rmd17(load_dataset("rmd17/ethanol", root=edition))


def test_rmd17_of_the_public_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked as it is into a folder, or downloaded into the cache and unpacked there."""
    cache = tmp_path / "cache"
    archive = cache / "rmd17" / RMD17_ARCHIVE.filename
    public_archive(archive)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    check_rmd17(load_dataset("rmd17/ethanol", root=tmp_path / "unpacked"))
    monkeypatch.setattr("equibit.datasets.fetch.download", lambda remote, folder, **_: archive)
    path = fetch(find_entry("rmd17/ethanol"), cache)
    assert path == cache / "rmd17" / "npz_data" / "rmd17_ethanol.npz"
    assert not archive.exists()
    check_rmd17(load_dataset("rmd17/ethanol"))
    public = tmp_path / "again" / "rmd17.tar.bz2"
    public_archive(public)
    public.write_bytes(public.read_bytes()[:-300])
    monkeypatch.setattr("equibit.datasets.fetch.download", lambda remote, folder, **_: public)
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        fetch(find_entry("rmd17/ethanol"), tmp_path / "again")


def test_qm9_of_the_public_archive_leaves_out_what_its_authors_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "qm9"
    folder.mkdir(parents=True)
    listed = "heading\n" * 9 + "".join(f"{k} SMILES x y\n" for k in range(2, 3056)) + "3054\n"
    (folder / "uncharacterized.txt").write_text(listed)
    with tarfile.open(folder / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as archive:
        for index in (1, 2, 5000):
            text = (
                f"1\ngdb {index}" + 9 * "\t0" + "\t0.5\t-2.5" + 4 * "\t0" + "\n"
                "He\t0\t0\t0\t0\n0\n[He]\t[He]\nInChI\tInChI\n"
            )
            item = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            item.size = len(text)
            archive.addfile(item, io.BytesIO(text.encode()))
    monkeypatch.setattr(
        "equibit.datasets.fetch.download", lambda remote, folder, **_: folder / remote.filename
    )
    path = fetch(find_entry("qm9"), tmp_path / "cache")
    assert sorted(p.name for p in folder.iterdir()) == ["qm9.npz", "uncharacterized.txt"]
    dataset = load_dataset("qm9")
    assert dataset.source == str(path)
    assert [s.info["gdb_index"] for s in dataset.structures] == [1, 5000]
    assert dataset.structures[0].energy == pytest.approx(-3 * 27.211386245988)
    (folder / "uncharacterized.txt").write_text(listed.replace("\n7 ", "\n8 "))
    with pytest.raises(DatasetError, match="lists 3053 molecules, expected 3054"):
        fetch(find_entry("qm9"), tmp_path / "cache")


def test_a_set_of_the_generator_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of ``equibit data generate``, which is also that of the shipped set."""
    R = np.random.default_rng(0).normal(size=(50, 3, 3))
    np.savez(
        tmp_path / "ethanol-pbe.npz",
        z=[8, 1, 1],
        R=R,
        E=np.arange(50.0),
        F=R,
        split_train=np.arange(40),
        split_test=np.arange(40, 50),
        meta='{"units": {"R": "angstrom", "E": "eV", "F": "eV/angstrom"}, "level": "PBE"}',
    )
    monkeypatch.setattr("equibit.datasets.locations.PACKAGE_FILES", tmp_path)
    dataset = load_dataset("ethanol-pbe")
    assert [v.size for v in dataset.splits.values()] == [38, 2, 10]
    assert dataset.subset("test")[0].energy == 40.0
    assert load_dataset(tmp_path / "ethanol-pbe.npz").level_of_theory == "PBE"
    (tmp_path / "ethanol-pbe.npz").unlink()
    with pytest.raises(DatasetError, match="install equibit again"):
        load_dataset("ethanol-pbe")


def test_original_labels_are_a_set_of_their_own(edition: Path) -> None:
    revised = load_dataset("rmd17/ethanol", root=edition)
    original = load_dataset("md17/ethanol", root=edition)
    assert (revised.labels, original.labels) == ("rmd17", "md17")
    assert len(original) == 55
    for part in ("train", "validation", "test"):
        for one, other in zip(revised.subset(part), original.subset(part), strict=True):
            np.testing.assert_array_equal(one.positions, other.positions)
            assert one.energy != other.energy
    assert original.subset("test")[0].energy == pytest.approx(40 * KCAL)
    with pytest.raises(DatasetError, match="split 1 only"):
        load_dataset("md17/ethanol", root=edition, split=2)


def test_md17_does_not_take_revised_labels_for_original_ones(tmp_path: Path) -> None:
    (tmp_path / "rmd17").mkdir()
    np.savez(tmp_path / "rmd17" / "rmd17_ethanol.npz", **rmd17_arrays())
    with pytest.raises(DatasetError, match="downloads are off"):
        load_dataset("md17/ethanol", root=tmp_path)


def test_md17_of_the_public_archive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    R = rng.normal(size=(2500, 3, 3))
    np.savez(tmp_path / "md17_ethanol.npz", z=[8, 1, 1], R=R, E=rng.normal(size=(2500, 1)), F=R)
    dataset = load_dataset("md17/ethanol", root=tmp_path)
    assert {k: v.size for k, v in dataset.splits.items()} == {
        "train": 950,
        "validation": 50,
        "test": 1000,
    }
    assert "no official split" in dataset.split_note


def test_a_split_that_is_not_there(edition: Path) -> None:
    with pytest.raises(DatasetError, match="no official split 4; it has 1"):
        load_dataset("rmd17/ethanol", root=edition, split=4)


def test_the_validation_split_depends_on_the_seed_only(edition: Path) -> None:
    one, same, other = (load_dataset("rmd17/ethanol", root=edition, seed=s) for s in (0, 0, 1))
    assert one.splits["validation"].tolist() == same.splits["validation"].tolist()
    assert one.splits["validation"].tolist() != other.splits["validation"].tolist()


def test_where_sets_are_looked_for(
    edition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = find_entry("rmd17/ethanol")
    assert find(entry) is None
    monkeypatch.setenv("EQUIBIT_DATA", str(edition))
    assert find(entry) == edition / "rmd17" / "rmd17_ethanol.npz"
    named = tmp_path / "named"
    named.mkdir()
    np.savez(named / "rmd17_ethanol.npz", **rmd17_arrays())
    assert find(entry, root=named) == named / "rmd17_ethanol.npz"
    with pytest.raises(DatasetError, match="not a folder"):
        find(entry, root=tmp_path / "nowhere")


def test_offline_message_says_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset("rmd17/ethanol")
    for part in (*RMD17_ARCHIVE.urls, "1066 MB", str(tmp_path / "cache" / "rmd17"), "EQUIBIT_DATA"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["rmd17/ethnol", "rdm17/ethanol"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(DatasetError, match="did you mean rmd17/ethanol"):
        load_dataset(name)
    with pytest.raises(FileFormatError, match="no file"):
        load_dataset("nowhere.xyz")


@pytest.mark.parametrize("option", [{"units": "eV,Å"}, {"sizes": SplitSizes()}, {"format": "npz"}])
def test_named_sets_define_themselves(edition: Path, option: dict) -> None:
    with pytest.raises(DatasetError, match=f"leave {next(iter(option))} out"):
        load_dataset("rmd17/ethanol", root=edition, **option)


def test_a_damaged_file_of_a_named_set(edition: Path) -> None:
    path = edition / "rmd17" / "rmd17_ethanol.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        load_dataset("rmd17/ethanol", root=edition)


@pytest.mark.parametrize("suffix", ["xyz", "npz", "traj", "db"])
def test_own_file_is_split_by_seed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own.{suffix}"
    write_structures(path, [water(k, energy=float(k)) for k in range(20)])
    dataset = load_dataset(path, sizes=SplitSizes(10, 5, 5), seed=3)
    energies = {part: [s.energy for s in dataset.subset(part)] for part in dataset.splits}
    assert [len(v) for v in energies.values()] == [10, 5, 5]
    assert sorted(e for part in energies.values() for e in part) == list(range(20))
    assert dataset.elements == (1, 8)
    again = load_dataset(path, sizes=SplitSizes(10, 5, 5), seed=3)
    np.testing.assert_array_equal(again.splits["train"], dataset.splits["train"])


def test_own_splits_of_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    structures = [water(k) for k in range(30)]
    write_npz(path, structures, splits={"train": range(20), "test": range(20, 30)})
    dataset = load_dataset(path)
    assert {k: v.size for k, v in dataset.splits.items()} == {
        "train": 19,
        "validation": 1,
        "test": 10,
    }
    write_npz(path, structures, splits={"train": range(21), "test": range(20, 30)})
    with pytest.raises(FileFormatError, match="structure 20 is in more than one split"):
        load_dataset(path)
    write_npz(path, structures, splits={"test": range(30)})
    with pytest.raises(FileFormatError, match="none called train"):
        load_dataset(path)


def test_units_of_own_files(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, z=[8, 1, 1], R=rmd17_arrays()["coords"], E=rmd17_arrays()["energies"])
    with pytest.raises(UnitsError, match="does not state its units"):
        load_dataset(path)
    dataset = load_dataset(path, units="kcal/mol,Å")
    assert dataset.units == Units("kcal/mol", "Å")
    assert dataset.structures[3].energy == pytest.approx(rmd17_arrays()["energies"][3] * KCAL)


def test_one_file_per_split(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.xyz" for name in ("train", "validation", "test")}
    for k, path in enumerate(paths.values()):
        write_structures(path, [water(30 * k + i) for i in range(20 + k)])
    dataset = load_dataset(paths)
    assert [v.size for v in dataset.splits.values()] == [20, 21, 22]
    assert dataset.subset("test")[0].positions[2, 1] == pytest.approx(0.96 + 0.06)
    del paths["validation"]
    assert [v.size for v in load_dataset(paths).splits.values()] == [19, 1, 22]


def test_a_test_file_that_repeats_the_training_file_is_refused(tmp_path: Path) -> None:
    paths = {"train": tmp_path / "train.xyz", "test": tmp_path / "test.xyz"}
    write_structures(paths["train"], [water(k) for k in range(20)])
    write_structures(paths["test"], [water(k) for k in range(19, 25)])
    with pytest.raises(DatasetError, match=r"1 structures of .*test\.xyz are also in the training"):
        load_dataset(paths)


def test_wrong_files_per_split(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected train"):
        load_dataset({"test": tmp_path / "x.xyz"})
    with pytest.raises(DatasetError, match="expected train"):
        load_dataset({"train": tmp_path / "x.xyz", "val": tmp_path / "x.xyz"})


def test_unknown_split_of_a_dataset(edition: Path) -> None:
    with pytest.raises(DatasetError, match="has no split 'dev'; it has train, validation, test"):
        load_dataset("rmd17/ethanol", root=edition).subset("dev")


def test_reference_ethanol(reference_data: Path) -> None:
    revised = load_dataset("rmd17/ethanol", root=reference_data)
    original = load_dataset("md17/ethanol", root=reference_data)
    assert {k: v.size for k, v in revised.splits.items()} == {
        "train": 950,
        "validation": 50,
        "test": 1000,
    }
    for part in ("train", "test"):
        one, other = revised.subset(part), original.subset(part)
        np.testing.assert_array_equal(one[7].positions, other[7].positions)
        assert abs(one[7].energy - other[7].energy) > 1
    overlap = np.intersect1d(revised.splits["test"], revised.splits["train"])
    assert overlap.size == 0
    energies = np.array([s.energy for s in revised.subset("train")])
    assert energies.mean() == pytest.approx(-4209.6, abs=0.5)
    assert load_dataset("rmd17/ethanol", root=reference_data, split=3).splits["test"].size == 1000


def test_reference_rmd17_of_every_molecule_has_three_splits(reference_data: Path) -> None:
    for name in (name for name in ENTRIES if name.startswith("rmd17/")):
        path = find(find_entry(name), root=reference_data)
        assert path is not None
        with np.load(path) as file:
            assert {"train_idx_03", "test_idx_03"} <= set(file.files)


def test_reference_qm9_is_partial_and_says_so(reference_data: Path) -> None:
    dataset = load_dataset("qm9", root=reference_data)
    assert "without fluorine, not the whole of QM9" in dataset.split_note
    methane = dataset.structures[0]
    assert methane.numbers.tolist() == [6, 1, 1, 1, 1]
    assert methane.energy == pytest.approx(-40.5236795 * 27.211386245988)
