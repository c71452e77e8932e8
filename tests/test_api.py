"""The names of the package itself: complete, lazy and documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import equibit

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", equibit.__all__)
def test_every_name_is_there_and_in_the_listing(name: str) -> None:
    assert getattr(equibit, name) is not None
    assert name in dir(equibit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'equibit' has no attribute 'quantise'"):
        _ = equibit.quantise  # type: ignore[attr-defined]


def test_type_checkers_and_users_see_the_same_names() -> None:
    tree = ast.parse(Path(equibit.__file__).read_text())
    imported = {
        (alias.name, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("equibit")
        for alias in node.names
    }
    assert imported == set(equibit._HOMES.items())


@pytest.mark.parametrize(
    "names",
    ["Structure read_structures write_structures load_dataset Recipe get_recipe Calculator"],
)
def test_what_needs_no_torch_imports_none(names: str) -> None:
    program = (
        "import sys, equibit\n"
        f"for name in {names.split()!r}: getattr(equibit, name)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_page_names_all_of_them() -> None:
    page = (CHECKOUT / "docs" / "api" / "index.md").read_text()
    assert [name for name in equibit.__all__ if f"`{name}`" not in page] == []
