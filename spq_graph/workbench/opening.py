"""What is needed to open a model, as one value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from spq_graph.documents import artifact
from spq_graph.documents.leftovers import temporary_folder
from spq_graph.models.hub import place_of
from spq_graph.models.source import Source, resolve
from spq_graph.models.stand_in import StandIn
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import require_glu
from spq_graph.passes.find.nested import refuse_nested
from spq_graph.passes.find.quantized import identify_floating, refuse_quantized
from spq_graph.passes.find.sound import refuse_broken_weights
from spq_graph.passes.pieces.split import signature
from spq_graph.runtime.sessions.session import Decoder
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import GraphError, UsageError
from spq_graph.workbench.cluster import Cluster, connected
from spq_graph.workbench.holding import refuse_unheld
from spq_graph.workbench.lifted import refuse_changed
from spq_graph.workbench.looked import Looked, read_graph
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import LONGEST_WINDOW, Workbench


@dataclass(frozen=True, slots=True)
class Opening:
    """What is needed to open a model.

    Attributes:
        source: a Hugging Face folder, an .onnx file, a Hub id, or the word "reference", the embedded model; where no
            sites are sought, an OUT folder as well.
        tokenizer: folder with tokenizer.json; None for the source's own.
        bos: prepend BOS even where the tokenizer does not.
        window: tokens in a sequence; None for the model's length, at most 2048.
        memory: bytes of weights that a session may hold; None for the default.
        allow_no_glu: go on where no GLU is found.
        dask: address of the scheduler of a Dask cluster whose workers share the work; None for this process alone.
    """

    source: str | Path
    tokenizer: str | Path | None = None
    bos: bool = False
    window: int | None = None
    memory: int | None = None
    allow_no_glu: bool = False
    dask: str | None = None

    @classmethod
    def of(cls, model: Openable) -> Opening:
        """The opening itself, or that of a plain source."""
        return model if isinstance(model, Opening) else cls(model)

    @property
    def name(self) -> str:
        """The source as it was given."""
        return str(self.source)

    @property
    def place(self) -> Path:
        """The folder or file that is meant; of a Hub id that in the cache, where there is one."""
        return place_of(self.name)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files and folders that are read, as far as they exist."""
        given = (self.tokenizer, self.place)
        return tuple(path for place in given if place is not None and (path := Path(place)).exists())

    def resolve(self, *, find_sites: bool = True) -> Source:
        """What the source is, checked as far as that is possible without loading it.

        Args:
            find_sites: as of `open`.

        Raises:
            SourceError: it cannot be read.
            UsageError: the window is longer than the model.
        """
        opening = self if find_sites else self._in_out()
        found = resolve(opening.name, Path(opening.tokenizer) if opening.tokenizer is not None else None)
        if self.window is not None and found.max_length is not None and self.window > found.max_length:
            has = found.max_length
            raise UsageError(
                f"the model has {has} positions", where=f"--window {self.window}", remedy=f"pass {has} or less"
            )
        return found

    @contextmanager
    def open(
        self,
        steps: Steps | None = None,
        *,
        find_sites: bool = True,
        looked: Looked | None = None,
        targets: Sequence[str] = (),
        stand_in: StandIn | None = None,
    ) -> Iterator[Workbench]:
        """A workbench over the source, with a folder for intermediate files that vanishes at the end.

        Args:
            steps: times and shows what is done.
            find_sites: read the graph and find its sites, for what is to be quantized. Without, any decoder will do,
                quantized or not, and an OUT folder is opened with its own tokenizer.
            looked: the model's graph and sites, where somebody looked at it already; none are sought then.
            targets: that it is for, where sites are sought: it is held against what these, and the CPU, have.
            stand_in: what is opened in place of a folder or GGUF, so that it need not be unpacked and exported.

        Raises:
            ClusterError: there is no cluster, or it cannot do the work: before anything that takes long.
            SourceError: the model cannot be read or exported.
            GraphError: sites are sought, and it is quantized already, holds no GLU, or what a target does not have.
        """
        source, steps = self.resolve(find_sites=find_sites), steps or Steps()
        with temporary_folder() as work, self._cluster(steps) as cluster:
            if cluster is not None:
                cluster.check((source.path if source.kind == "onnx" else work).resolve())
            source = at_hand(source, work, steps) if stand_in is None else _stood_in_for(source, stand_in, work)
            tokenizer = TextTokenizer.load(source.tokenizer) if source.tokenizer is not None else None
            model = _as_onnx(source, work, steps) if stand_in is None else work / artifact.MODEL
            if stand_in is not None:
                longest = self.window or min(source.max_length or LONGEST_WINDOW, LONGEST_WINDOW)
                save_model(stand_in.graph(longest), model)
            if find_sites and looked is None:
                looked = self._look(source, model, steps, targets)
            elif looked is not None:
                refuse_nested(looked.prepared.graph, looked.found, source.path)
            bench = Workbench(
                source, work, steps, model, tokenizer, looked, self.bos, self.window, self.memory, stand_in, cluster
            )
            if looked is not None and looked.prepared.lifted_from is not None:
                refuse_changed(bench)
            yield bench

    def _cluster(self, steps: Steps) -> AbstractContextManager[Cluster | None]:
        return connected(self.dask, steps.remark) if self.dask is not None else nullcontext()

    def _look(self, source: Source, model: Path, steps: Steps, targets: Sequence[str]) -> Looked:
        """Read the graph of what is to be quantized, and find its sites."""
        with steps.step("identify", "Finding GLU blocks and projections"):
            whole = read_graph(model)
            refuse_quantized(whole.graph, source.path)
            found = identify_floating(whole.graph)
            if not (self.allow_no_glu and found.sites):
                refuse_nested(whole.graph, found, source.path)
            refuse_unheld(whole.graph, targets, str(source.path))
        if not self.allow_no_glu:
            if not found.blocks and any(value.name == "input_ids" for value in whole.graph.graph.inputs):
                Decoder(model, *signature(whole.graph))  # a weight that is an input may be why there is no GLU
            require_glu(found, source.origin)
        if not found.sites:
            raise GraphError(
                "no MatMul or Gemm with a constant weight was found",
                where=source.origin,
                remedy="`spq-graph inspect --unmatched` says of every product why it is none",
            )
        refuse_broken_weights(whole.graph, found.sites, source.origin)
        return Looked(whole, found)

    def _in_out(self) -> Opening:
        """Of an OUT folder its model, and the tokenizer beside that where no other is named."""
        folder = self.place
        if not (folder / artifact.MODEL).is_file():
            return self
        beside = folder if (folder / "tokenizer.json").is_file() else None
        return replace(self, source=folder / artifact.MODEL, tokenizer=self.tokenizer or beside)


def at_hand(source: Source, work: Path, steps: Steps) -> Source:
    """The source itself; of a GGUF the folder that it was converted from, unpacked below `work`, by the same name.

    Raises:
        SourceError: the GGUF cannot be read.
    """
    if source.kind != "gguf":
        return source
    from spq_graph.models.gguf import unpack

    folder = work / "unpacked"
    folder.mkdir()
    with steps.step("unpack", f"Unpacking {source.origin}"):
        unpack(source.path, folder, tokenizer=source.tokenizer is None, heard=steps.heard)
    return replace(resolve(str(folder), source.tokenizer), origin=source.origin, came=source.came)


def _stood_in_for(source: Source, stand_in: StandIn, work: Path) -> Source:
    """The source as `at_hand` would have it, as far as the header of a GGUF says it; a folder is that itself."""
    if source.kind != "gguf":
        return source
    folder = work / "tokenizer"
    folder.mkdir()
    for name, content in stand_in.tokenizer.items():
        (folder / name).write_text(content, encoding="utf-8")
    return replace(
        source,
        kind="folder",
        tokenizer=folder if stand_in.tokenizer else source.tokenizer,
        bos_token_id=stand_in.token("bos_token_id"),
        eos_token_id=stand_in.token("eos_token_id"),
        max_length=stand_in.max_length,
        vocab_size=stand_in.sizes.vocabulary,
    )


def _as_onnx(source: Source, work: Path, steps: Steps) -> Path:
    """The source's file, exported where it is a folder; named as `export` names it, so that both have one digest."""
    if source.kind == "onnx":
        return source.path
    from spq_graph.models.export import export_folder

    model = work / artifact.MODEL
    label = f"Exporting {source.origin}"
    with steps.step("export", label):
        told = partial(steps.phase, label)
        export_folder(source.path, model, progress=told, remark=steps.remark, heard=steps.heard)
    return model


Openable: TypeAlias = Opening | str | Path
"""A model to open: how, or a plain source, opened as `Opening` does by default."""
