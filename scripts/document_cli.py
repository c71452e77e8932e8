"""MkDocs hook: put the help of every subcommand where a page says ``<!-- commands -->``."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    if MARKER not in markdown:
        return markdown
    from equibit.cli.main import SUBCOMMANDS, LazyGroup

    names = LazyGroup(name="equibit").list_commands(None)
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(lambda name: _reference(name, SUBCOMMANDS[name].module), names))
    return markdown.replace(MARKER, "\n\n".join(pages))


def _reference(name: str, module: str) -> str:
    """The subcommand's page as Typer documents it, its headings one level down."""
    command = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", f"equibit {name}"]
    page = subprocess.run(command, capture_output=True, text=True)
    if page.returncode:
        raise RuntimeError(f"cannot document equibit {name}: {page.stderr}")
    return "\n".join(
        f"#{line}" if line.startswith("#") else line for line in page.stdout.split("\n")
    )
