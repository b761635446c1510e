"""Build a family with random weights, export it, find its sites, and quantize it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spq_graph.documents.recipe import Recipe
from spq_graph.models.chatter import quiet
from spq_graph.models.export import export_folder
from spq_graph.models.loading import load_causal_lm
from spq_graph.models.source import resolve
from spq_graph.models.trace import INPUTS
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import Identified, identify, require_glu
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import GraphError, SourceError
from spq_graph.views.words import integer_kernels
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from tests.families.family import VOCABULARY, Family

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """What the support matrix says of a family.

    Attributes:
        exports: whether `spq-graph export` takes its folder.
        glu_blocks, sites: how many were found, without the router and the head among the sites.
        integer_kernels: how many sites ran as integer kernels with everything quantized; None where nothing was run.
    """

    exports: bool
    glu_blocks: int
    sites: int
    integer_kernels: int | None


@dataclass(slots=True)
class Examination:
    """What came of a family.

    Attributes:
        found: in its graph.
        refused: what the command line says of its folder; empty where it takes it.
        no_glu: what is said where no GLU was found; empty where there is one.
        expected, exported, quantized: logits of torch, of the export and of the quantized model where a token is.
        planned: how many sites were planned as integers.
    """

    found: Identified
    refused: str
    no_glu: str
    expected: Array | None = None
    exported: Array | None = None
    quantized: Array | None = None
    planned: int | None = None

    @property
    def row(self) -> Row:
        """For the support matrix."""
        counted = sum(not site.left_alone() for site in self.found.sites)
        return Row(not self.refused, len(self.found.blocks), counted, self.planned)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self.row)


def examine(family: Family, work: Path) -> Examination:
    """Everything that the tests want to know of a family; `work` is an empty folder."""
    folder, graph = work / "folder", work / "model.onnx"
    model = _write_model(family, folder)
    refused = _refusal(folder)
    if refused:
        _export_encoder(model, graph)
    else:
        export_folder(folder, graph)
    onnx = load_graph(graph)
    Canonicalize()(onnx)
    found = identify(onnx)
    examination = Examination(found, refused, _no_glu(found))
    if not refused:
        _compare_with_torch(examination, folder, graph)
        _quantize(examination, graph, work)
    return examination


def _write_model(family: Family, folder: Path) -> Any:
    import torch
    import transformers

    name = family.config or family.model.removesuffix("ForCausalLM").removesuffix("LMHeadModel").removesuffix("Model")
    config = getattr(transformers, name if name.endswith("Config") else f"{name}Config")(**family.configuration)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, family.model)(config).eval()
        model.save_pretrained(folder)
    return model


def _refusal(folder: Path) -> str:
    try:
        resolve(str(folder))
    except SourceError as error:
        return error.what
    return ""


def _no_glu(found: Identified) -> str:
    try:
        require_glu(found, "here")
    except GraphError as error:
        return error.what
    return ""


def _export_encoder(model: Any, graph: Path) -> None:
    """What somebody would do who has an encoder."""
    import torch

    ids = torch.ones(2, 8, dtype=torch.int64)
    with quiet(), torch.no_grad():
        torch.onnx.export(model, (ids, torch.ones_like(ids)), graph, dynamo=True, opset_version=21, verbose=False)


def _feeds() -> dict[str, npt.NDArray[np.int64]]:
    """A batch whose second row is padded on the left."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (2, 11))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    return dict(zip(INPUTS, (ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0)), strict=True))


def _logits(graph: Path) -> Array:
    feeds = _feeds()
    runner = Runner(graph)
    (logits,) = runner.run(feeds["input_ids"], feeds["attention_mask"])
    return logits[feeds["attention_mask"] == 1]


def _compare_with_torch(examination: Examination, folder: Path, graph: Path) -> None:
    import torch

    feeds = {name: torch.from_numpy(feed) for name, feed in _feeds().items()}
    with torch.no_grad():
        logits = load_causal_lm(folder)(**feeds).logits
    examination.expected = logits[feeds["attention_mask"] == 1].numpy()
    examination.exported = _logits(graph)


def _quantize(examination: Examination, graph: Path, work: Path) -> None:
    """Quantize everything, calibrated on random ids, and prove that integer kernels run."""
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (16, 32))
    np.savez(work / "ids.npz", input_ids=ids)
    with Opening(graph, allow_no_glu=True, window=32).open() as bench:
        ranges = bench.calibrate(bench.sequences(work / "ids.npz"))
        plan = make_plan(bench, Recipe(max_kept=0.0), 8, ranges, None)
        built = bench.build(plan, work / "quantized.onnx")
        examination.planned = integer_kernels(bench.prove(built, plan).ops)
        assert examination.planned == len(plan.integer_sites)
    examination.quantized = _logits(built.path)
