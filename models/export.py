"""Hugging Face folder to ONNX, by torch.export.

What the rest of spq-graph relies on: the inputs and outputs of the contract, symbolic batch and length, module paths
on the nodes exactly as in the Hugging Face model, and the same bytes for the same folder.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spq_graph.documents.interrupts import never_unwound
from spq_graph.models.chatter import Heard, Hush, quiet, said
from spq_graph.models.loading import about, load_causal_lm, require_torch
from spq_graph.models.trace import Traced, trace
from spq_graph.terms.errors import OutputError, SourceError, SpqError

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

# Everything else that the exporter notes down is either noise (FX nodes, class names) or names files of this machine
# (stack traces). The second one ties a folded, anonymous weight to the parameter it came from.
_KEPT_METADATA: Final = frozenset({"pkg.torch.onnx.name_scopes", "pkg.onnxscript.optimizer.folded_from"})


def export_folder(
    folder: Path,
    out: Path,
    *,
    opset: int = 21,
    cache: bool = True,
    progress: Callable[[str], None] | None = None,
    remark: Callable[[str], None] | None = None,
    heard: Heard | None = None,
) -> None:
    """Exports the causal language model in `folder`.

    The graph takes `input_ids`, `attention_mask` and `position_ids`, int64 [batch_size, sequence_length], and returns
    `logits`, float32 [batch_size, sequence_length, vocabulary]. With a cache it also takes `past_key_values.N.key` and
    `.value`, float32 [batch_size, heads, past_sequence_length, width], and returns them grown by the new tokens as
    `present.N.key` and `.value`; the mask then covers both, and a past of length 0 is a beginning.

    Args:
        folder: a Hugging Face folder; it is only read.
        out: the ONNX file to write; weights go beside it, into the same name with `.data` appended.
        opset: ONNX operator set.
        cache: whether the graph takes and returns keys and values.
        progress: is told what begins, one phrase a step.
        remark: is told what of the weight files is left out, and of an adapter that is merged.
        heard: is told what the libraries printed meanwhile; where it is given, what C and Rust print is held back too.

    Raises:
        SourceError: torch or transformers is missing, or the model cannot be loaded or exported; `heard` of the error
            is what the libraries printed.
        OutputError: the files cannot be written.
    """
    report, printed = progress or (lambda _: None), list[str]()

    def listen(text: str) -> None:
        printed.append(text)
        if heard is not None:
            heard(text)

    try:
        with never_unwound():
            report("importing torch")
            require_torch()
            report("loading weights")
            hush = partial(quiet, listen, descriptors=heard is not None)
            model = load_causal_lm(folder, hush=hush, remark=remark)
            graph = _graph_of(model, folder, opset, cache, report, hush)
    except SpqError as error:
        error.heard = "".join(printed)
        raise
    report("writing")
    _strip(graph)
    _save(graph, out)


def _graph_of(
    model: PreTrainedModel, folder: Path, opset: int, cache: bool, report: Callable[[str], None], hush: Hush
) -> ir.Model:
    """Traces and translates.

    Raises:
        SourceError: either failed; whether it would without a cache was tried before that is said.
    """
    try:
        report("tracing the model")
        with hush(), _no_garbage_collection():
            traced = trace(model, cache=cache)
        report("translating to ONNX")
        with hush(), _no_garbage_collection():
            return _translate(traced, opset)
    except Exception as error:
        without = cache and _goes_without_cache(model, opset, report, hush)
        raise SourceError(
            f"the exporter failed: {said(_innermost(error))}",
            where=about(folder, model.config, type(model).__name__),
            remedy="Export it without its cache (export --no-cache), which was tried, and pass what that writes."
            if without
            else "Export it with another tool (optimum, onnxruntime-genai's builder), and pass the .onnx file.",
        ) from error


def _goes_without_cache(model: PreTrainedModel, opset: int, report: Callable[[str], None], hush: Hush) -> bool:
    """Whether what failed with keys and values can be exported without: nobody is sent on a way that ends alike."""
    report("trying without its cache")
    try:
        with hush(), _no_garbage_collection():
            _translate(trace(model, cache=False), opset)
    except Exception:
        return False
    return True


def _innermost(error: BaseException) -> BaseException:
    """The first of chained errors: the exporter's outer ones say at which of its steps it failed, and not why."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _translate(traced: Traced, opset: int) -> ir.Model:
    import torch
    from onnx_ir.passes.common import IdentityEliminationPass
    from onnxscript import optimizer

    from spq_graph.models.experts import translations

    with torch.no_grad():
        onnx_program = torch.onnx.export(
            traced.program,
            dynamo=True,
            opset_version=opset,
            input_names=traced.inputs,
            output_names=traced.outputs,
            dynamic_shapes=traced.axes,
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    assert onnx_program is not None  # None is for the exporter that dynamo=True replaced
    model: ir.Model = onnx_program.model
    # The exporter's own setting tries every rewrite rule twice; the second round finds nothing but Identity nodes.
    with _slices_alone():
        optimizer.optimize_ir(model, num_iterations=1)
    IdentityEliminationPass()(model)
    return model


@contextlib.contextmanager
def _slices_alone() -> Iterator[None]:
    """While this lasts, what makes one Split of two Slices is tried on Slices alone.

    onnxscript 0.7 tries it on every node, with every Slice of the graph beside it: quadratic in the number of layers,
    and of SmolLM2-135M's export 26 seconds of 90. What comes out is the same to the byte.
    """
    from onnxscript.rewriter.rules.common import slice_split_rule as rule

    tried = rule.try_rewrite

    def on_slices(model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        return tried(model, graph, node, **options) if node.op_type == "Slice" else None

    rule.try_rewrite = on_slices
    try:
        yield
    finally:
        del rule.try_rewrite  # the class has it


def _strip(model: ir.Model) -> None:
    """Removes what would make the file depend on this machine, and what nobody reads."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        _keep_known(node.metadata_props)
        for value in node.outputs:
            _keep_known(value.metadata_props)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _keep_known(value.metadata_props)


def _keep_known(metadata: Any) -> None:
    for key in metadata.keys() - _KEPT_METADATA:
        del metadata[key]


def _save(model: ir.Model, out: Path) -> None:
    import onnx_ir as ir

    try:
        ir.save(model, out, external_data=f"{out.name}.data")
    except OSError as error:
        raise OutputError(
            f"the ONNX file cannot be written: {error.strerror or error}",
            where=str(out),
            remedy="Check that the folder exists and that the disk has room for the weights.",
        ) from error


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tracing allocates millions of small objects that live to its end; looking through them costs a fifth of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
