"""The figures beside other quantizers, as a table."""

from __future__ import annotations

from typing import Any

from peer_workers import LENGTH

LABELS = {
    "bare": "bare inference, read and write",
    "ours": "spq-graph",
    "onnxruntime": "onnxruntime quantize_static",
    "modelopt": "ModelOpt",
    "quark": "Quark",
}


def show(report: dict[str, Any]) -> None:
    """Print the table, and which goals are met."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        ("wall s", "seconds", 1),
        ("CPU s", "cpu_seconds", 1),
        ("peak MB", "peak_rss_bytes", 1e6),
        ("anonymous MB", "peak_anonymous_bytes", 1e6),
    )
    table = Table("", *(h for label, *_ in columns for h in (label, "x ours")), "output MB", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    found = report["medians"]
    for name, label in LABELS.items():
        if name not in found and name not in report["skipped"]:
            continue
        if name in report["skipped"]:
            table.add_row(label, "skipped")
            continue
        row = found[name]
        cells = [c for _, key, scale in columns for c in (f"{row[key] / scale:.4g}", times(row, found["ours"], key))]
        table.add_row(label, *cells, f"{row['output_bytes'] / 1e6:.1f}")
    console = Console(width=max(120, Console().width))
    console.print(
        f"12 layers, 82 million parameters, {report['rows']} sequences of {LENGTH} random tokens; "
        f"medians of {report['rounds']} rounds\n{report['processor']}, {report['cores']} cores, load "
        f"{report['load']:.1f}\n",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    for name, reason in report["skipped"].items():
        console.print(f"{LABELS[name]}: {reason}", highlight=False, soft_wrap=True)
    for goal in report["goals"]:
        other = "" if goal["other_ratio"] is None else f" ({goal['other_measure']}: {goal['other_ratio']:.2f})"
        verdict = "met" if goal["met"] else "missed"
        console.print(f"{verdict}: {goal['ratio']:.2f} {goal['what']}{other}; at most {goal['goal']} wanted")


def times(row: dict[str, float], base: dict[str, float], key: str) -> str:
    return f"{row[key] / base[key]:.2f}" if base[key] else "-"
