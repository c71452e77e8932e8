"""QM9's original form: a molecule, a folder of them and the archive."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from equibit.structures import FileFormatError
from equibit.structures.formats import detect_format, read_structures

# Made up in the published form: water-like numbers, one of them with QM9's exponent.
WATER = (
    "3\n"
    "gdb {index}\t799.58\t437.90\t282.94\t1.85\t6.31\t-0.29\t0.06\t0.36\t19.0\t0.021\t-76.404\t"
    "-76.401\t-76.400\t-76.422\t6.002\t\n"
    "O\t-0.0343\t 0.9775\t 0.0076\t-0.589\n"
    "H\t 0.0647\t 0.0205\t 1.5*^-3\t 0.294\n"
    "H\t 0.8717\t 1.3007\t 6.9*^-4\t 0.294\n"
    "1671.4\t3803.6\t3907.6\n"
    "O\tO\t\n"
    "InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
)


def molecule(index: int) -> str:
    return WATER.replace("{index}", str(index))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in (1, 2):
        (tmp_path / f"dsgdb9nsd_{index:06d}.xyz").write_text(molecule(index))
    return tmp_path


def archive(path: Path, texts: dict[str, str]) -> Path:
    with tarfile.open(path, "w:bz2") as file:
        for name, text in texts.items():
            item = tarfile.TarInfo(name)
            item.size = len(text.encode())
            file.addfile(item, io.BytesIO(text.encode()))
    return path


def test_one_molecule(folder: Path) -> None:
    path = folder / "dsgdb9nsd_000001.xyz"
    assert detect_format(path) == "qm9"
    (read,) = read_structures(path)
    assert read.numbers.tolist() == [8, 1, 1]
    assert read.positions[1].tolist() == [0.0647, 0.0205, 1.5e-3]
    assert read.energy == pytest.approx((-76.404 - 0.021) * 27.211386245988, rel=1e-12)
    assert read.info == {"gdb_index": 1, "u0_ha": -76.404, "zpve_ha": 0.021, "smiles": "O"}


def test_folder_and_archive(folder: Path) -> None:
    texts = {path.name: path.read_text() for path in sorted(folder.glob("*.xyz"))}
    path = archive(folder / "dsgdb9nsd.xyz.tar.bz2", texts)
    for source in (folder, path):
        assert [s.info["gdb_index"] for s in read_structures(source)] == [1, 2]


@pytest.mark.parametrize("lines", range(1, 8))
def test_truncated_molecules(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "dsgdb9nsd_000001.xyz"
    path.write_text("".join(molecule(1).splitlines(keepends=True)[:lines]))
    with pytest.raises(FileFormatError, match=path.name):
        read_structures(path, format="qm9")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("799.58\t", "", "lines 1 and 2"),
        ("-0.0343", "x", "line 3"),
        ("O\t-0.0343", "Q\t-0.0343", "line 3"),
        ("-76.404", "nan", "energy label is nan"),
        ("0.0205\t", "", "line 4"),
    ],
)
def test_damaged_molecules(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "dsgdb9nsd_000001.xyz"
    path.write_text(molecule(1).replace(old, new, 1))
    with pytest.raises(FileFormatError, match=message):
        read_structures(path)


def test_truncated_archive_names_the_last_molecule(tmp_path: Path) -> None:
    import random

    noise = random.Random(0)
    texts = {
        f"dsgdb9nsd_{k:06d}.xyz": molecule(k)
        + " ".join(f"{noise.random()}" for _ in range(3000))
        + "\n"
        for k in range(60)
    }
    path = archive(tmp_path / "dsgdb9nsd.xyz.tar.bz2", texts)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(FileFormatError, match=r"truncated or damaged after dsgdb9nsd_\d+\.xyz"):
        read_structures(path)


def test_archive_and_folder_without_molecules(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds no"):
        read_structures(tmp_path)
    with pytest.raises(FileFormatError, match="holds no"):
        read_structures(archive(tmp_path / "x.tar.bz2", {}))
