"""Small tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def key_value_table(title: str, values: Mapping[str, object]) -> Table:
    """Two columns, one row per item; numbers with four digits."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")  # paths and digests stay whole
    for key, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), text)
    return table
