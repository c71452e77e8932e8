"""A progress bar for downloads, on the terminal's error stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from equibit.datasets.download import Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A Rich bar with size, speed and time left; one line per file."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def report(filename: str, done: int, total: int | None) -> None:
            if filename not in tasks:
                tasks[filename] = bars.add_task(filename, total=total)
            bars.update(tasks[filename], completed=done, total=total)

        yield report
