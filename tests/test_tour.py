"""The commands of the README and the tutorial, run as they stand on a toy, only shortened."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import pytest

from equibit.cli.main import main
from equibit.structures.formats import write_structures
from tests.experiments.small import small_data, small_structures

CHECKOUT = Path(__file__).resolve().parents[1]

SHORTENED = {
    "train": ["optimization.epochs=1", "run.validate_every=1", "network.irreps=8x0e+8x1o"],
    "quantize": ["--epochs", "1", "--scalar-epochs", "0"],
    "evaluate": ["--rotations", "2", "--rotated-structures", "2", "--no-latency", "--no-report"],
}
NEEDS_MORE = {"generate", "--distill"}


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (CHECKOUT / page).read_text(), re.DOTALL)


def commands(page: str, marker: str) -> list[list[str]]:
    """Commands of those shell blocks that are about ``marker``."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if marker in line]
    return [w for w in words if w and w[0] == "equibit" and not NEEDS_MORE & {*w}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_data(tmp_path / "mine.xyz")
    write_structures(tmp_path / "new.xyz", small_structures(3))
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/own-data.md"])
def test_the_tour_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tour = commands(page, "mine")
    assert {words[1] for words in tour} >= {"data", "config", "train", "quantize", "evaluate"}
    for words in tour:
        status = main([*words[1:], *SHORTENED.get(words[1], [])])
        assert status == 0, (words, capsys.readouterr().err)
    assert (folder / "labelled.xyz").is_file()
    assert (folder / "runs" / "report" / "evaluation.json").is_file()


def test_the_readmes_python_runs_after_its_tour(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands("README.md", "mine"):
        if words[1] in ("config", "train", "quantize"):
            assert main([*words[1:], *SHORTENED.get(words[1], [])]) == 0
    evaluation, ase = blocks("README.md", "python")
    for program, unit in ((evaluation, "meV/Å"), (ase, "eV")):
        exec(compile(textwrap.dedent(program), "README.md", "exec"), {})
        assert unit in capsys.readouterr().out
