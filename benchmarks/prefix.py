"""What a prefix is worth on a model: KL against the source with nothing kept, by prefix and channels in branches.

    python benchmarks/prefix.py MODEL DATA [--bits 8] [--window 512] [--calibration 16384] [--tokens 2048]

MODEL is what `spq-graph quantize` takes, DATA a text. Ranges come from so many of its tokens, KL from so many of these.
Without --prefix 1 ..., tokens are searched as the remedy does. Prefixes of tokens drawn from the text stand beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from spq_graph.decisions.prefix import named
from spq_graph.documents.changes import Peel, Prefix
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe, load_recipe
from spq_graph.remedies.peel import peeled
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import meter
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.prefixing import drawn, footing, prefix_of
from spq_graph.workbench.workbench import Workbench

CHANNELS = (0, 4, 16)


def branches_of(ranges: Ranges, values: Sequence[str], count: int) -> dict[str, Peel]:
    found = {value: peeled(value, ranges.values[value], count) for value in values if count}
    return {value: one.change for value, one in found.items() if one is not None and one.narrower >= 1.25}


def figures(bench: Workbench, text: Sequences, recipe: Recipe, prefix: Prefix | None) -> Iterator[str]:
    ranges = bench.calibrate(text, prefix=prefix)
    gauge = meter(bench, text, recipe, ranges, lambda measured: None, prefix).whole
    sites = [site for site in bench.found.sites if not site.left_alone()]
    read = list(dict.fromkeys(site.input for site in sites))
    yield f"{max(ranges.values[value].ratio for value in read):,.0f}"
    yield f"{gauge.kl({}):.4f}"
    everywhere = {site.key: Precision.integer(recipe.bits) for site in sites}
    yield from (f"{gauge.kl(everywhere, branches_of(ranges, read, count)):.4f}" for count in CHANNELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--target", default="portable")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--calibration", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--prefix", type=int, nargs="+", help="token ids, instead of a search")
    given = parser.parse_args()
    wanted = {"prefix": {"use": "always", "tokens": given.prefix or []}}
    recipe = load_recipe(None, target=given.target, bits=given.bits, sensitivity_tokens=given.tokens, remedies=wanted)
    with Opening(given.model, window=given.window).open() as bench:
        text = bench.sequences(given.data, max_tokens=given.calibration)
        plain = bench.calibrate(text)
        found = footing(bench, recipe, plain, text)
        for tokens, kl in found.kls.items():
            print(f"searched: {tokens}: {kl:.4f}", flush=True)
        assert found.prefix is not None
        tokens = found.prefix.tokens
        prefixes: dict[str, Prefix | None] = {"none": None}
        for count in range(1, len(tokens) + 1):
            prefixes[named(tokens[:count])] = prefix_of(bench, tokens[:count])
        for seed in range(2):
            prefixes[f"drawn, seed {seed}"] = prefix_of(bench, drawn(text, len(tokens), seed, tokens))
        print("| prefix | largest ratio | FP32 | " + " | ".join(f"{count} channels" for count in CHANNELS) + " |")
        for name, prefix in prefixes.items():
            print(f"| {name} | " + " | ".join(figures(bench, text, recipe, prefix)) + " |", flush=True)


if __name__ == "__main__":
    main()
