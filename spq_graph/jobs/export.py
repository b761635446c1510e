"""A Hugging Face folder or a GGUF to ONNX."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spq_graph.documents import artifact
from spq_graph.documents.leftovers import temporary_folder
from spq_graph.documents.results import Exported
from spq_graph.documents.staging import staged
from spq_graph.terms.errors import UsageError
from spq_graph.workbench.companions import add_companions, check_companions
from spq_graph.workbench.opening import Openable, Opening, at_hand
from spq_graph.workbench.steps import Steps


def export(
    model: Openable,
    out: str | Path,
    *,
    opset: int = 21,
    cache: bool = True,
    force: bool = False,
    steps: Steps | None = None,
) -> Exported:
    """Export a Hugging Face folder or a GGUF to ONNX.

    Args:
        model: the folder or the file.
        out: the folder to write.
        opset: of ONNX.
        cache: with keys and values as inputs and outputs.
        force: replace an earlier OUT.
        steps: times and shows what is done.

    Raises:
        UsageError: it is an ONNX file already.
        SpqError: as `quantize`.
    """
    opening, out, steps = Opening.of(model), Path(out), steps or Steps()
    found = opening.resolve()
    if found.kind == "onnx":
        raise UsageError(
            "this is an ONNX file already", where=opening.name, remedy="name a Hugging Face folder or a GGUF"
        )
    artifact.check_out(out, force=force, inputs=(found.path,))
    check_companions(found)
    from spq_graph.models.export import export_folder

    with staged(out, force=force) as staging, temporary_folder() as work:
        found = at_hand(found, work, steps)
        model = staging / artifact.MODEL
        label = f"Exporting {found.origin}"
        with steps.step("export", label):
            told = partial(steps.phase, label)
            export_folder(
                found.path, model, opset=opset, cache=cache, progress=told, remark=steps.remark, heard=steps.heard
            )
            add_companions(found, staging)
    return Exported(out / artifact.MODEL)
