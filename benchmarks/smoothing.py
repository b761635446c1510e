"""What smoothing is worth on a model: KL with nothing kept, by exponent, place and channels in outlier branches.

    python benchmarks/smoothing.py MODEL DATA [--target portable] [--tokens 2048] [--alpha 0.5 0.65 0.8]

MODEL is what `spq-graph quantize` takes, DATA a text. Ranges come from 16,384 of its tokens in windows of 512, KL from
some of these, as decisions have it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spq_graph.documents.changes import Peel, Scale
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import load_recipe
from spq_graph.remedies.peel import peeled
from spq_graph.remedies.smooth import scaled, smoothed
from spq_graph.terms.absorber import Absorbers, Place
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import Gauge, meter
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import absorbers_of
from spq_graph.workbench.workbench import Workbench

CALIBRATION, WINDOW, CHANNELS = 16384, 512, (0, 4, 16)


def scales_at(absorbers: Absorbers, ranges: Ranges, alphas: Mapping[Place, float]) -> dict[str, Scale]:
    found: dict[str, Scale] = {}
    for one in absorbers.found:
        if one.place in alphas and (rows := absorbers.rows(one)) is not None and one.value in ranges.values:
            change = smoothed(one, ranges.values[one.value], rows, alphas[one.place])
            found |= {one.value: change} if change is not None else {}
    return found


def branches_of(ranges: Ranges, values: Sequence[str], count: int) -> dict[str, Peel]:
    found = {value: peeled(value, ranges.values[value], count) for value in values if count}
    return {value: one.change for value, one in found.items() if one is not None and one.narrower >= 1.25}


def measure(bench: Workbench, gauge: Gauge, ranges: Ranges, precision: Precision, scales: Mapping[str, Scale]) -> str:
    values = {v: scaled(seen, scales[v].exponents) if v in scales else seen for v, seen in ranges.values.items()}
    sites = [site for site in bench.found.sites if not site.left_alone()]
    after = replace(ranges, values=values)
    read = list(dict.fromkeys(site.input for site in sites))
    everywhere = {site.key: precision for site in sites}
    kls = (gauge.kl(everywhere, branches_of(after, read, count), scales) for count in CHANNELS)
    return " | ".join(f"{kl:.4f}" for kl in kls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--target", default="portable")
    parser.add_argument("--scales", choices=("static", "by_token"), default="static")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.3, 0.5, 0.65, 0.8])
    given = parser.parse_args()
    recipe = load_recipe(None, target=given.target, sensitivity_tokens=given.tokens)
    precision = Precision.INT8 if given.scales == "static" else Precision.W8A8_TOKEN
    with Opening(given.model, window=WINDOW).open() as bench:
        text = bench.sequences(given.data, max_tokens=CALIBRATION)
        ranges = bench.calibrate(text)
        gauge = meter(bench, text, recipe, ranges, lambda: None).whole
        absorbers = absorbers_of(bench)
        print(f"| smoothed | {' | '.join(f'{count} channels' for count in CHANNELS)} |", flush=True)
        ways = [(f"{place} {a:g}", {place: a}) for place in reversed(Place) for a in given.alpha]
        ways += [(f"both {a:g}", dict.fromkeys(Place, a)) for a in given.alpha]
        for name, alphas in [("nothing", dict[Place, float]()), *ways]:
            scales = scales_at(absorbers, ranges, alphas)
            print(f"| {name} | {measure(bench, gauge, ranges, precision, scales)} |", flush=True)


if __name__ == "__main__":
    main()
