"""Measured methods as a table, the few that matter as a shorter one, and in words where ours stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.published.front import Point, front, sentences
from benchmarks.published.methods import METHODS, OURS


def points(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """The quantized models by what was timed; FP32, which loses nothing, is what they are held against."""
    return {
        label: [
            Point(row["name"], METHODS[row["name"]].short, row["kl"], row["times"][label]["over_fp32"])
            for row in rows
            if row["name"] != "fp32" and label in row["times"]
        ]
        for label in rows[0]["times"]
    }


def table(rows: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> str:
    """Every row; a speed on the front is bold; what could not be measured stands below, with the reason."""
    by_label = points(rows)
    fronts = {label: {point.key for point in front(some)} for label, some in by_label.items()}
    head = ["", "perplexity", "KL", "MB", *by_label, "s to load", "peak MB", "CPU s to quantize"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        speeds = [_told(row, label, fronts) for label in by_label]
        seconds = row["made"].get("cpu_seconds")
        spent = "–" if seconds is None else f"{seconds:.0f}"
        memory = [f"{row['load_seconds']:.1f}", f"{row['peak_rss_bytes'] / 1e6:.0f}", spent]
        lines.append(_line([METHODS[row["name"]].label, *_loss(row), f"{row['bytes'] / 1e6:.0f}", *speeds, *memory]))
    noise = ", ".join(f"{_speed(rows[0], label, leads=False)} at {label}" for label in by_label)
    lines += ["", f"- FP32 beside itself came to {noise}: that much of a speed is noise."]
    lines += [*(f"- {said}" for said in sentences(by_label, OURS))]
    lines += [f"- {METHODS[name].label}: not measured, {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def headline(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> str:
    """FP32, our default, and what is on the front at one of these measures, the least loss first."""
    by_label = points(rows)
    leading = {point.key for label in measures for point in front(by_label[label])}
    fronts = {label: {point.key for point in front(by_label[label])} for label in measures}
    head = ["", "perplexity", "KL", "MB", *measures]
    lines = [_line(head), _line(["---"] * len(head))]
    shown = [row for row in rows if row["name"] in leading | {"fp32", OURS[0]}]
    for row in sorted(shown, key=lambda row: row["kl"]):
        speeds = [_told(row, label, fronts) for label in measures]
        lines.append(_line([METHODS[row["name"]].label, *_loss(row), f"{row['bytes'] / 1e6:.0f}", *speeds]))
    return "\n".join(lines)


def _loss(row: Mapping[str, Any]) -> list[str]:
    if row["name"] == "fp32":
        return [f"{row['perplexity']:.2f} ± {row['perplexity_stderr']:.2f}", "–"]
    change = row["perplexity_over_fp32"]
    # Where nothing is left of a model, per cent are no way to say it.
    per_cent = round(100 * change, 1) + 0.0  # and no zero below zero
    perplexity = f"{row['perplexity']:.2f} ({per_cent:+.1f} %)" if change < 10 else f"{row['perplexity']:,.0f}"
    return [perplexity, f"{row['kl']:.4f} ± {row['kl_stderr']:.4f}"]


def _told(row: Mapping[str, Any], label: str, fronts: Mapping[str, set[str]]) -> str:
    return "1.00" if row["name"] == "fp32" else _speed(row, label, leads=row["name"] in fronts[label])


def _speed(row: Mapping[str, Any], label: str, *, leads: bool) -> str:
    if label not in row["times"]:
        return "–"
    speed = f"{row['times'][label]['over_fp32']:.2f}"
    return f"**{speed}**" if leads else speed


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
