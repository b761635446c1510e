"""Which methods no other one beats, in loss and speed together, and what that says of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A method: KL against the floating-point model, nats a token, and how many times faster than it."""

    key: str
    label: str
    loss: float
    speed: float


def beats(one: Point, other: Point) -> bool:
    """Whether one is at least as good in both, and better in one."""
    return one.loss <= other.loss and one.speed >= other.speed and (one.loss, one.speed) != (other.loss, other.speed)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats, the fastest first."""
    left = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(left, key=lambda point: (-point.speed, point.loss))


def sentences(by_measure: Mapping[str, Sequence[Point]], ours: Sequence[str]) -> list[str]:
    """Where our methods stand, measure by measure; what beats one is named, the one of least loss.

    Args:
        by_measure: the quantized models, by what was timed.
        ours: their keys.
    """
    said: list[str] = []
    for measure, points in by_measure.items():
        for point in (point for point in points if point.key in ours):
            better = sorted((p for p in points if beats(p, point)), key=lambda p: (p.loss, -p.speed))
            if not better:
                said.append(f"At {measure}, {point.label} is on the front.")
                continue
            best = better[0]
            others = f", and {len(better) - 1} more" if len(better) > 1 else ""
            said.append(
                f"At {measure}, {point.label} is **not** on the front: {best.label} has KL {best.loss:.4f} to "
                f"{point.loss:.4f} at {best.speed:.2f} to {point.speed:.2f} times the speed of FP32{others}."
            )
    return said
