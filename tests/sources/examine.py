"""Produce the graphs of the catalogue, each environment in one go, and examine them one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spq_graph.documents.recipe import Recipe
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import Identified
from spq_graph.passes.find.quantized import identify_floating
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import SpqError
from spq_graph.views.words import integer_kernels
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from tests.conftest import write_tokenizer
from tests.families.catalogue import FAMILIES
from tests.families.family import VOCABULARY
from tests.sources.catalogue import BY_NAME, NAMES, SOURCES, Source, settings_of
from tests.sources.environments import produce, python_of

Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class Produced:
    """Graphs of every source, as files.

    Attributes:
        work: where they lie.
        failed: why one was not made, by its folder.
    """

    work: Path
    failed: dict[str, str] = field(default_factory=dict)

    def folder(self, source: str, family: str) -> Path:
        """Of one graph."""
        return self.work / source / family

    def model(self, source: str, family: str) -> Path:
        """One graph."""
        return self.folder(source, family) / "model.onnx"

    def origin(self, source: str, family: str) -> Path:
        """The Hugging Face folder that a graph was made from, which holds what torch says of it."""
        return self.folder(f"folders-{BY_NAME[source].folders}", family)


def produce_all(work: Path, environments: Path, sources: Iterable[Source] = SOURCES) -> Produced:
    """Make folders, graphs, and what is made of graphs, in this order."""
    found, sources = Produced(work), list(sources)
    tokenizer = work / "tokenizer"
    tokenizer.mkdir()
    write_tokenizer(tokenizer)
    folders = dict.fromkeys(s.folders for s in sources)
    steps = [[(name, _folder_jobs(found, name, tokenizer)) for name in folders]]
    for derived in (False, True):
        some = [s for s in sources if bool(s.of) is derived]
        names = dict.fromkeys(s.environment for s in some)
        steps.append([(n, [job for s in some if s.environment == n for job in _jobs(found, s)]) for n in names])
    with ThreadPoolExecutor(max_workers=2) as pool:
        for step in steps:
            # In halves, which run beside each other; the environments themselves are made one by one.
            halves = [(python_of(name, environments), jobs[n::2]) for name, jobs in step for n in range(2)]
            for failed in pool.map(lambda half: produce(*half) if half[1] else {}, halves):
                found.failed |= failed
    return found


def _folder_jobs(found: Produced, environment: str, tokenizer: Path) -> list[dict[str, Any]]:
    def config(name: str) -> str:
        model = FAMILIES[name].model
        return FAMILIES[name].config or f"{model.removesuffix('ForCausalLM').removesuffix('LMHeadModel')}Config"

    return [
        {
            "do": "folder",
            "out": str(found.folder(f"folders-{environment}", name)),
            "model": FAMILIES[name].model,
            "config": config(name),
            "settings": settings_of(name),
            "tokenizer": str(tokenizer),
        }
        for name in NAMES
    ]


def _jobs(found: Produced, source: Source) -> list[dict[str, Any]]:
    def taken(family: str) -> Path:
        return found.model(source.of, family) if source.of else found.origin(source.name, family)

    return [
        source.job | {"out": str(found.folder(source.name, family)), "source": str(taken(family))}
        for family in source.families
        if source.outcomes.get(family) != "absent" or not source.of
    ]


@dataclass(slots=True)
class Examination:
    """What came of one graph.

    Attributes:
        found: in it; None where there is no graph.
        error: of the step that could not be done; empty where all were.
        expected, floating, quantized: logits of torch, of the graph, and of what we made of it.
        kernels: how many sites ran as integer kernels, and were planned to.
        greedy: whether the graph's greedy text, over its cache where it has one, is that of torch.
        cached: whether it went over a cache.
    """

    found: Identified | None = None
    error: str = ""
    expected: Array | None = None
    floating: Array | None = None
    quantized: Array | None = None
    kernels: int | None = None
    greedy: bool | None = None
    cached: bool | None = None

    @property
    def counted(self) -> int:
        """Sites that may become integers."""
        return sum(not site.left_alone() for site in self.found.sites) if self.found is not None else 0

    @property
    def roles(self) -> Counter[tuple[str, int | None]]:
        """How many sites have each role and layer."""
        return Counter((site.role.value, site.layer) for site in self.found.sites) if self.found else Counter()


def examine(produced: Produced, source: str, family: str, work: Path) -> Examination:
    """Find the sites of one graph, run it, quantize it, and run that; ends at the first step that fails."""
    path, result = produced.model(source, family), Examination()
    if not path.is_file():
        result.error = produced.failed.get(str(path.parent), "not made")
        return result
    model = load_graph(path)
    Canonicalize()(model)
    result.found = identify_floating(model)
    told = np.load(produced.origin(source, family) / "expected.npz")
    result.expected = told["logits"]
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (16, 32))
    np.savez(work / "ids.npz", input_ids=ids)
    try:
        with Opening(path, allow_no_glu=True, window=32).open() as bench:
            plan = make_plan(bench, Recipe(max_kept=0.0), 8, bench.calibrate(bench.sequences(work / "ids.npz")), None)
            built = bench.build(plan, work / "quantized.onnx")
            result.kernels = integer_kernels(bench.prove(built, plan).ops)
            result.floating = bench.runner.logits(told["ids"], np.ones_like(told["ids"]))
            result.quantized = Runner(built.path).logits(told["ids"], np.ones_like(told["ids"]))
            _follow(result, bench.runner, told["greedy"], told["ids"].shape[1])
    except SpqError as cause:
        result.error = str(cause)
    return result


def _follow(result: Examination, runner: Runner, text: npt.NDArray[np.int64], given: int) -> None:
    """Go on as torch did, token by token."""
    state = Decoding(runner, 1)
    result.cached = state.cached
    token, said = state.feed(text[:, :given])[:, -1:].argmax(-1), []
    while len(said) < text.shape[1] - given:
        said.append(int(token[0, 0]))
        token = state.feed(token)[:, -1:].argmax(-1)
    result.greedy = said == text[0, given:].tolist()
