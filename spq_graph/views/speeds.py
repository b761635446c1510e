"""What `bench` measured, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spq_graph.documents.speed import Speed
from spq_graph.views.words import megabytes, timed_name


def show(speed: Speed, console: Console) -> None:
    """Print a benchmark."""
    lengths = list(speed.rows[0].prefill)
    table = Table(box=None, pad_edge=False)
    loaded = ("load", "resident") if speed.loaded else ()
    for name in ("", *(f"prefill {n}" for n in lengths), "decode", *loaded, "file"):
        table.add_column(name, justify="left" if not name else "right")
    for row in speed.rows:
        cells = [f"{1e3 * row.prefill[n].seconds:.1f} ms  {row.prefill[n].times:.2f}x" for n in lengths]
        times = f"  {row.decode.times:.2f}x" if row.decode and row.decode.times else ""
        cells.append(f"{row.decode.tokens_per_second:.1f} tokens/s{times}" if row.decode else "no KV cache")
        if row.load_seconds is not None and row.resident_bytes is not None:
            cells += [f"{row.load_seconds:.2f} s", f"{megabytes(row.resident_bytes)} MB"]
        cells.append(f"{megabytes(row.bytes)} MB")
        table.add_row(Text(timed_name(row)), *cells)
    console.print(table)
    console.print(speed.conditions, style="dim", highlight=False)
