"""What documents promise and several files repeat must agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import equibit

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere() -> None:
    citation = re.search(r"^version: (.+)$", (CHECKOUT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert equibit.__version__ == PROJECT["version"] == citation.group(1)


def test_the_readme_has_exactly_the_two_set_up_commands() -> None:
    commands = re.findall(
        r"^python3 scripts/bootstrap\.py.*$", (CHECKOUT / "README.md").read_text(), re.MULTILINE
    )
    assert commands == ["python3 scripts/bootstrap.py demo", "python3 scripts/bootstrap.py test"]


def test_ci_runs_the_readmes_test_command() -> None:
    script = CHECKOUT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "python3 scripts/bootstrap.py test" in script.read_text()


def test_the_pinned_torch_is_one_the_package_accepts() -> None:
    from packaging.requirements import Requirement

    pinned = re.search(r"^torch==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    accepted = [
        requirement
        for requirement in map(Requirement, PROJECT["optional-dependencies"]["train"])
        if requirement.name == "torch"
    ]
    assert [requirement.specifier.contains(pinned.group(1)) for requirement in accepted] == [True]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (CHECKOUT / page).read_text()):
        assert target.startswith("http") or (CHECKOUT / target).exists(), target


class TestBootstrap:
    """The set-up script, up to where it would install something."""

    @staticmethod
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = CHECKOUT / "scripts" / "bootstrap.py"
        return subprocess.run(
            [sys.executable, str(script), *arguments], capture_output=True, text=True
        )

    def test_an_unknown_job_is_refused(self) -> None:
        done = self.run("build")
        assert done.returncode == 2
        assert "demo" in done.stderr

    def test_an_environment_that_cannot_be_made_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        done = self.run("test", "--venv", str(tmp_path / "file"))
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: make a Python environment in ")
        assert "venv" in last
        assert "Traceback" not in done.stderr

    def test_it_needs_only_the_standard_library(self) -> None:
        source = (CHECKOUT / "scripts" / "bootstrap.py").read_text()
        imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
        assert imported <= set(sys.stdlib_module_names)
