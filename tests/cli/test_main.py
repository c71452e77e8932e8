from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import equibit
from equibit.cli import main as cli
from equibit.structures import ConfigError

COMMANDS = textwrap.dedent(
    """
    import typer
    from equibit.structures import ConfigError

    app = typer.Typer()

    @app.command()
    def fail(how: str) -> int:
        if how == "config":
            raise ConfigError("config.yaml: unknown key 'cutof';\\ndid you mean 'cutoff'?")
        if how == "disk":
            raise OSError(28, "No space left on device", "/data/model")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "extra":
            raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
        if how == "bug":
            raise RuntimeError("bug")
        if how == "exit":
            raise typer.Exit(7)
        return 5
    """
)


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A subcommand ``fail`` and one whose module does not exist."""
    (tmp_path / "failing_command.py").write_text(COMMANDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    monkeypatch.setitem(cli.SUBCOMMANDS, "fail", cli.Subcommand("failing_command", "Fails well."))
    monkeypatch.setitem(cli.SUBCOMMANDS, "later", cli.Subcommand("equibit.cli.later", "Not yet."))
    yield
    sys.modules.pop("failing_command", None)


def test_help_lists_commands_without_importing_them(fail: None) -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert "Fails well." in result.output
    assert "Not yet." not in result.output
    assert "failing_command" not in sys.modules


def test_a_subcommand_shows_its_own_help(fail: None) -> None:
    result = CliRunner().invoke(cli.app, ["fail", "--help"])
    assert result.exit_code == 0
    assert "how" in result.output.lower()
    assert "--install-completion" not in result.output


@pytest.mark.usefixtures("fail")
@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("config", 1, "error: config.yaml: unknown key 'cutof'; did you mean 'cutoff'?\n"),
        ("disk", 1, "error: /data/model: no space left on device; free some space and repeat\n"),
        ("extra", 1, 'error: this needs torch: pip install "equibit[train]"\n'),
        ("exit", 7, ""),
        ("well", 0, ""),
    ],
)
def test_an_error_is_one_line_and_a_status(
    how: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fail", how]) == status
    assert capsys.readouterr().err == message


@pytest.mark.usefixtures("fail")
def test_an_interrupt_says_what_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail", "interrupt"]) == 130
    assert capsys.readouterr().err.startswith("interrupted: files already written are complete")


@pytest.mark.usefixtures("fail")
def test_bugs_and_debug_mode_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="bug"):
        cli.main(["fail", "bug"])
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ConfigError):
        cli.main(["fail", "config"])


@pytest.mark.usefixtures("fail")
@pytest.mark.parametrize("arguments", [["nonsense"], ["later"], ["--nonsense"], ["fail"]])
def test_a_mistake_in_the_command_is_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert "Usage:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"equibit {equibit.__version__}\n"


def test_other_errors_are_explained_or_left_alone() -> None:
    assert cli.explain(FileNotFoundError(errno.ENOENT, "No such file", "a.xyz")) == (
        "a.xyz: no such file"
    )
    assert cli.explain(ModuleNotFoundError("no module", name="equibit.oops")) is None
    assert cli.explain(ValueError("bug")) is None


def test_every_listed_subcommand_exists_and_has_an_app() -> None:
    """In a subprocess, where importing a subcommand with its heavy libraries costs others nothing."""
    names = cli.LazyGroup(name="equibit").list_commands(None)
    for name in names:
        spec = cli.importlib.util.find_spec(cli.SUBCOMMANDS[name].module)
        assert spec is not None
        assert spec.origin is not None
        assert "app = typer.Typer(" in Path(spec.origin).read_text(encoding="utf-8"), name


def test_help_of_the_installed_program_needs_no_heavy_library() -> None:
    heavy = "{'torch', 'lightning', 'e3nn', 'matplotlib', 'pyscf', 'scipy', 'ase'}"
    program = (
        "import sys\n"
        "from equibit.cli.main import main\n"
        "status = main(['--help'])\n"
        f"loaded = {heavy} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(equibit.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
