"""Tables for the terminal (rich)."""

from __future__ import annotations

from rich.table import Table

from lightning_s3t.tuning import LayerTable


def layer_table(found: LayerTable, title: str | None = None) -> Table:
    """Shows what was found in a model.

    Args:
        found: What `describe_layers` gave.
        title: The table's title.
    """
    caption = f"network: {found.network or 'the module itself'}; found by: {found.source}"
    table = Table("", "modules", "trained", title=title, caption=caption)
    table.add_column("trainable", justify="right")
    table.add_column("parameters", justify="right")
    for row in found.rows:
        table.add_row(row.name, ", ".join(row.modules), row.trained, f"{row.trainable:,}", f"{row.parameters:,}")
    return table
