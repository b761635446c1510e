"""What calibration saw at every site input; shards merged in any order give the same bytes as one run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from spq_graph.documents.json_text import json_text
from spq_graph.documents.leftovers import recover_files
from spq_graph.documents.ranges_file import (
    SCHEMA,
    by_channel,
    digest_of_arrays,
    read_arrays,
    read_head,
    refuse_senseless,
)
from spq_graph.documents.staging import written
from spq_graph.documents.tables import html_table, to_frame
from spq_graph.documents.token_profile import IntArray, Peak, TokenProfile
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.errors import DataError, SourceError
from spq_graph.terms.site import Site

if TYPE_CHECKING:
    from pandas import DataFrame

_DIGEST_MODULUS = 1 << 256
UNSEALED = (
    "an earlier version wrote these ranges, without a digest that would show damage to their arrays; "
    "`spq-graph calibrate --merge` of this one file writes them with it"
)


@dataclass(slots=True)
class Ranges:
    """Ranges of every observed value of one model, over one set of sequences.

    Attributes:
        model_digest: of the model.
        values: by name, what was seen of each.
        data: of the sequences, the digest as a number.
        tokens, sequences: how many were run.
        file: where they were written last, or read from; None where they were not.
        remark: what speaks against so little data, where that was asked; no part of the file.
        sealed: whether that file holds a digest of its arrays, as all that are written today; False for an older one.
    """

    model_digest: str
    values: dict[str, ValueRange] = field(default_factory=dict)
    data: int = 0
    tokens: int = 0
    sequences: int = 0
    file: Path | None = field(default=None, compare=False)
    remark: str | None = field(default=None, compare=False)
    sealed: bool = field(default=True, compare=False)

    def count(self, ids: IntArray, mask: IntArray) -> None:
        """Take note of the sequences that were run; ids and mask are int64 [batch, length]."""
        for row, keep in zip(ids, mask.astype(bool), strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(row[keep], dtype="<i8").tobytes()).digest()
            self.data = (self.data + int.from_bytes(digest)) % _DIGEST_MODULUS  # commutes: shards in any order
            self.tokens += int(keep.sum())
            self.sequences += 1

    @property
    def data_digest(self) -> str:
        """Digest of the sequences as a set with multiplicity."""
        return f"sum-sha256:{self.data:064x}"

    def add(self, name: str, seen: ValueRange) -> None:
        """Merge one observation of one value."""
        if name in self.values:
            self.values[name].merge(seen)
        else:
            # A copy: what is merged into this later must not reach the shard that it came from.
            self.values[name] = replace(seen, histogram=dict(seen.histogram))

    def settle(self) -> None:
        """Bring values that did not see every sequence as one to the form that does not depend on batches.

        An expert may by chance get all tokens of one batch, and then they are the batch's sequences; of the next one it
        gets a few. Its ranges are those of rows without a sequence all the same. To be called when all is counted.
        """
        for seen in self.values.values():
            if seen.sequences != self.sequences:
                seen.forget_sequences()

    def merge(self, other: Ranges) -> None:
        """Add another shard of the same model.

        Raises:
            DataError: the shards come from different models.
        """
        if other.model_digest != self.model_digest:
            raise DataError(
                "these ranges come from different models",
                where=f"{self.model_digest} and {other.model_digest}",
                remedy="calibrate all shards on the same file",
            )
        for name, seen in other.values.items():
            self.add(name, seen)
        self.data = (self.data + other.data) % _DIGEST_MODULUS
        self.tokens += other.tokens
        self.sequences += other.sequences
        self.settle()

    def refuse_lacking(self, sites: Iterable[Site], where: str) -> None:
        """Refuse ranges that say nothing of a site.

        Args:
            sites: of the model.
            where: what the ranges are called.

        Raises:
            DataError: naming the site. Experts may lack: of one that no token was routed to there is nothing to say.
        """
        lacking = [site for site in sites if site.expert is None and site.input not in self.values]
        if lacking:
            more = f", nor of {len(lacking) - 1} more sites" if len(lacking) > 1 else ""
            raise DataError(
                f"these ranges say nothing of {lacking[0].key} (value '{lacking[0].input}'){more}",
                where=where,
                remedy="measure them again with `spq-graph calibrate`",
            )

    def save(self, path: str | Path) -> None:
        """Write `path` (JSON, named so where it is not) and, beside it, the arrays as .safetensors."""
        path = json_file(Path(path))
        arrays: dict[str, npt.NDArray[Any]] = {}
        values: dict[str, dict[str, Any]] = {}
        for name in sorted(self.values):
            seen = self.values[name]
            codes = sorted(seen.histogram)
            arrays[f"{name}/bins"] = np.array(codes, dtype=np.int32)
            arrays[f"{name}/counts"] = np.array([seen.histogram[c] for c in codes], dtype=np.int64)
            arrays[f"{name}/channel_low"], arrays[f"{name}/channel_high"] = seen.channel_low, seen.channel_high
            if seen.profile is not None:
                arrays |= {f"{name}/{part}": array for part, array in seen.profile.arrays().items()}
            values[name] = seen.facts() | {"ratio_sum": seen.ratio_sum}
        head: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model_digest,
            "data": self.data_digest,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "values": values,
        }
        content = save(arrays)
        head["arrays"] = digest_of_arrays(content)
        facts = (json_text(head, path.name, ascii_only=True) + "\n").encode()
        written({path: facts, path.with_suffix(".safetensors"): content})
        self.file, self.sealed = path, True

    def to_dict(self) -> dict[str, Any]:
        """What `calibrate --json` prints: where they were written, and over how much they were measured."""
        file = str(self.file) if self.file is not None else None
        counted = {"sequences": self.sequences, "tokens": self.tokens, "values": len(self.values)}
        remark = {"remark": self.remark} if self.remark is not None else {}
        return {"ranges": file, **counted, **remark}

    def to_pandas(self) -> DataFrame:
        """One row for each observed value, by its name.

        Raises:
            UsageError: pandas is not installed.
        """
        return to_frame(({"value": name} | seen.facts() for name, seen in sorted(self.values.items())), "value")

    def _repr_html_(self) -> str:
        first = sorted(self.values.items(), key=lambda item: (-item[1].ratio, item[0]))[:12]
        columns = ("value", "ratio", "max", "median", "token", "position")
        rows = [(n, v.ratio, v.peak.value, v.median, v.peak.token, v.peak.position) for n, v in first]
        return html_table(f"Ranges of {len(self.values)} values over {self.tokens:,} tokens", columns, rows)

    @classmethod
    def of(cls, given: Ranges | str | Path) -> Ranges:
        """The ranges themselves, or those of a file.

        Raises:
            DataError: as `load`.
        """
        return given if isinstance(given, Ranges) else cls.load(Path(given))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, broken, of another schema, or says what cannot be.
            SourceError: its arrays are a pipe or a device.
        """
        path = json_file(Path(path))
        try:
            if path.is_dir():
                raise ValueError("it is a folder")
            recover_files([path, path.with_suffix(".safetensors")])
            head = read_head(path)
            arrays = read_arrays(path.with_suffix(".safetensors"), head)
            loaded = cls(head["model"], tokens=head["tokens"], sequences=head["sequences"], file=path)
            loaded.sealed = "arrays" in head
            loaded.data = _data_of(head)
            for name, v in head["values"].items():
                bins, counts = arrays[f"{name}/bins"].tolist(), arrays[f"{name}/counts"].tolist()
                seen = loaded.values[name] = ValueRange(
                    v["min"],
                    v["max"],
                    Peak(v["token_max"], v["token"], v["position"]),
                    dict(zip(bins, counts, strict=True)),
                    v["ratio_sum"],
                    v["sequences"],
                    v["tokens"],
                    *by_channel(arrays, name),
                    _profile(arrays, name),
                )
                refuse_senseless(name, seen, loaded.sequences)
        except SourceError:
            raise
        except Exception as cause:
            what = str(cause) if isinstance(cause, ValueError) else f"{type(cause).__name__}: {cause}"
            raise DataError(
                f"the ranges cannot be read ({what:.400})",
                where=str(path),
                remedy="measure them again with `spq-graph calibrate`",
            ) from cause
        return loaded


def _data_of(head: dict[str, Any]) -> int:
    found = re.fullmatch("sum-sha256:([0-9a-f]{64})", str(head.get("data")))
    if found is None:
        raise ValueError(f"data: {head.get('data')!r:.80} is no digest of sequences")
    return int(found[1], 16)


def _profile(arrays: dict[str, npt.NDArray[Any]], name: str) -> TokenProfile | None:
    parts = [f"{name}/{part}" for part in ("profile", "profile_max", "leaders", "leaders_max")]
    return TokenProfile.from_arrays(*(arrays[part] for part in parts)) if parts[0] in arrays else None


def json_file(path: Path) -> Path:
    """The file that a path to ranges means: `ranges` and `ranges.json` are the same, and "." stays a folder."""
    return path if path.suffix == ".json" or path.name in ("", "..") else path.with_name(path.name + ".json")


def merge_all(shards: Iterable[Ranges]) -> Ranges:
    """Merge shards of one model.

    Raises:
        DataError: no shard, or shards of different models.
    """
    merged: Ranges | None = None
    for shard in shards:
        if merged is None:
            merged = Ranges(shard.model_digest)
        merged.merge(shard)
    if merged is None:
        raise DataError("no ranges to merge", remedy="name at least one ranges file")
    return merged
