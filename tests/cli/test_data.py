"""``equibit data`` from the outside: results, exit codes, and what bad input leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from equibit.cli.main import main
from equibit.structures import Structure
from equibit.structures.formats import read_structures, write_structures


@pytest.fixture(autouse=True)
def nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQUIBIT_DATA", raising=False)
    monkeypatch.setenv("EQUIBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EQUIBIT_OFFLINE", "1")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.xyz"
    structures = [
        Structure([8, 1], [[0, 0, 0], [0.9 + 0.01 * k, 0, 0]], energy=-75.0 - 0.01 * k)
        for k in range(12)
    ]
    write_structures(path, structures)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An array file that does not state its units."""
    path = tmp_path / "bare.npz"
    rng = np.random.default_rng(0)
    np.savez(path, z=[8, 1], R=rng.normal(size=(5, 2, 3)), E=np.ones(5), e2=np.zeros(5))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_list_says_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    np.savez(root / "rmd17_ethanol.npz", x=1)
    status, out, _ = run(capsys, "list", "--data-root", root, "--json")
    files = {row["name"]: row["file"] for row in json.loads(out)}
    assert status == 0
    assert files["rmd17/ethanol"] == str(root / "rmd17_ethanol.npz")
    assert files["qm9"] is None
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert "md17/uracil" in out


def test_inspect(capsys: pytest.CaptureFixture[str], own: Path, tmp_path: Path) -> None:
    status, out, _ = run(capsys, "inspect", own, "--json")
    assert status == 0
    assert json.loads(out)["elements"] == {"H": 12, "O": 12}
    pytest.importorskip("matplotlib")
    picture = tmp_path / "own.svg"
    status, out, _ = run(capsys, "inspect", own, "--plot", picture)
    assert status == 0
    assert "H 12, O 12" in out
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("suffix", ["xyz", "npz", "traj", "db"])
def test_convert_and_back(
    capsys: pytest.CaptureFixture[str], own: Path, tmp_path: Path, suffix: str
) -> None:
    there = tmp_path / f"there.{suffix}"
    status, out, _ = run(capsys, "convert", own, there, "--json")
    assert (status, json.loads(out)["structures"]) == (0, 12)
    back = tmp_path / "back.xyz"
    assert run(capsys, "convert", there, back)[0] == 0
    assert back.read_bytes() == own.read_bytes()


def test_convert_with_stated_units_and_names(
    capsys: pytest.CaptureFixture[str], bare: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.xyz"
    options = ("--units", "Hartree,Bohr", "--energy-key", "e2")
    assert run(capsys, "convert", bare, output, *options)[0] == 0
    assert read_structures(output)[0].energy == 0.0


def test_convert_keeps_splits_of_a_named_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    R = np.random.default_rng(0).normal(size=(30, 2, 3))
    np.savez(
        root / "rmd17_ethanol.npz",
        nuclear_charges=[8, 1],
        coords=R,
        energies=R[:, 0, 0],
        forces=R,
        train_idx_01=np.arange(20),
        test_idx_01=np.arange(20, 30),
    )
    output = tmp_path / "out.npz"
    status, *_ = run(capsys, "convert", "rmd17/ethanol", output, "--data-root", root)
    assert status == 0
    with np.load(output) as file:
        assert (file["split_train"].size, file["split_test"].size) == (19, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fetch", "qm10"), "did you mean qm9"),
        (("fetch", "qm9"), "downloads are off; download https://"),
        (("inspect", "rmd17/ethnol"), "did you mean rmd17/ethanol"),
        (("inspect", "nowhere.xyz"), "there is no file nowhere.xyz"),
        (("inspect", "{own}", "--units", "eV"), "state energy and length"),
        (("inspect", "{own}", "--format", "cif"), "unknown format 'cif'"),
        (("inspect", "{own}", "--energy-key", "e"), "there is no energy under 'e'"),
        (("inspect", "{own}", "--plot", "x.docx"), "must end in .png"),
        (("inspect", "{bare}"), "does not state its units"),
        (("inspect", "{bare}", "--units", "Ry,Å"), "unknown unit of energy 'Ry'"),
        (("inspect", "{own}", "--data-root", "nowhere"), None),
        (("list", "--data-root", "nowhere"), "nowhere is not a folder"),
        (("convert", "{own}", "out.cif"), "unknown suffix '.cif'"),
        (("convert", "{own}", "{bare}"), "exists; choose another name or add --force"),
        (("convert", "{bare}", "out.xyz"), "does not state its units"),
        (("convert", "nowhere.xyz", "out.xyz"), "there is no file"),
        (("convert", "{own}", "nowhere/out.xyz"), "create it first"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str],
    own: Path,
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    filled = [argument.format(own=own, bare=bare) for argument in arguments]
    status, out, err = run(capsys, *filled)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    if message is None:
        assert status == 0
        return
    assert status == 1
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("suffix", ["xyz", "npz", "traj", "db"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01garbage", b"5\nenergy=1\nH 0 0 0\n"])
def test_bad_files_of_every_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    for command in (("inspect", path), ("convert", path, tmp_path / "out.xyz")):
        status, _, err = run(capsys, *command)
        assert status == 1
        assert f"bad.{suffix}" in err
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_mistake_in_the_command_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "inspect")[0] == 2
    assert run(capsys, "inspct")[0] == 2


def test_generate_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert "generate" in out
