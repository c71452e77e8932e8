"""``equibit predict`` from the command line, with a toy in the place of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import build
from tests.evaluation.toy import MorsePotential, molecule

import equibit.engine
from equibit.cli.main import main
from equibit.structures import Structure
from equibit.structures.ase_atoms import from_ase
from equibit.structures.formats.api import read_structures, write_structures


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for a model."""
    path = tmp_path / "model.safetensors"
    path.write_text("toy")
    monkeypatch.setattr(
        equibit.engine, "load_preferred", lambda name, **_: MorsePotential(name=str(name))
    )
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.xyz"
    write_structures(path, [molecule(k) for k in range(4)])
    return path


def test_predicts_and_reports(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.xyz"
    assert main(["predict", str(model), str(source), "-o", str(output), "--json"]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["written"] == 4
    assert run["structures_per_second"] == pytest.approx(4 / run["seconds"])
    assert run["structures_per_core_second"] > 0
    expected = MorsePotential().compute([molecule(3)])[0]
    np.testing.assert_allclose(read_structures(output)[3].forces, expected.forces, atol=1e-14)


@pytest.mark.skipif(not equibit.engine.is_built(), reason="the compiled engine is not built")
def test_threads_change_nothing_but_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a byte of the output; and they are used."""
    load, used = equibit.engine.load_preferred, []

    def loaded(*args: Any, **settings: Any) -> Any:
        used.append(load(*args, **settings))
        return used[-1]

    monkeypatch.setattr(equibit.engine, "load_preferred", loaded)
    source = tmp_path / "in.xyz"
    write_structures(source, [ethanol(seed) for seed in range(40)])
    outputs = []
    for threads in ("1", "2"):
        output = tmp_path / f"{threads}.xyz"
        command = ["predict", "ethanol-w4a8", str(source), "-o", str(output)]
        assert main([*command, "--threads", threads]) == 0
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]
    assert [potential.threads for potential in used] == [1, 2]


def ethanol(seed: int) -> Structure:
    atoms = build.molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return from_ase(atoms)


def test_bad_structure_ends_with_its_index(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_structures(source, [molecule(0), Structure([9], [[0.0, 0, 0]])])
    output = tmp_path / "out.xyz"
    assert main(["predict", str(model), str(source), "-o", str(output)]) == 1
    assert "structure 1" in capsys.readouterr().err
    assert not output.exists()
    assert main(["predict", str(model), str(source), "-o", str(output), "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert f"{source}, structure 1: atom 0 has atomic number 9" in said
    assert "1 of 2 structures skipped" in said
    (listed,) = json.loads((tmp_path / "out.xyz.skipped.json").read_text())
    assert (listed["file"], listed["index"]) == (str(source), 1)


def test_damaged_structures_are_named_and_counted(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some that the reader refuses, and one that the model does."""
    lines = source.read_text().splitlines(keepends=True)
    size = len(lines) // 4
    lines[2] = lines[2].replace("C", "F")
    lines[size + 2] = lines[size + 2].replace(".", "*")
    source.write_text("".join(lines) + "".join(12 * lines[size : 2 * size]))
    output = tmp_path / "out.xyz"
    command = ["predict", str(model), str(source), "-o", str(output)]
    assert main(command) == 1
    assert "--skip-bad" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    assert main([*command, "--skip-bad"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{source}, structure 0: atom 0 has atomic number 9" in said
    assert f"{source}, structure 1: frame 1, line {2 * size}: pos: could not convert" in said
    assert f"structure 11: frame 11, line {12 * size}" in said
    assert "structure 12: " not in said
    assert f"14 of 16 structures skipped; every reason is in {output}.skipped.json" in said
    listed = json.loads(Path(f"{output}.skipped.json").read_text())
    assert [entry["index"] for entry in listed] == [0, 1, *range(4, 16)]
    assert len(read_structures(output)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{missing}", "{source}", "-o", "{out}"], "there is no model"),
        (["{model}", "{missing}", "-o", "{out}"], "missing.xyz"),
        (["{model}", "{source}", "-o", "out.pdb"], ".pdb"),
        (["{model}", "{source}", "-o", "{out}", "--units", "parsec"], "parsec"),
        (["{model}", "{source}", "-o", "{out}", "--dtype", "int3"], "--dtype int3"),
    ],
)
def test_mistakes_are_explained(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    names = {
        "model": model,
        "source": source,
        "out": tmp_path / "out.xyz",
        "missing": tmp_path / "missing.xyz",
    }
    assert main(["predict", *(a.format(**names) for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out.xyz").exists()
