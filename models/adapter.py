"""An adapter beside its model, or in a folder of its own: where its base lies, and how it is merged.

transformers leaves an adapter out where peft is not installed, and takes it, unmerged, where it is. Here it is merged,
or refused by name: what comes of a folder does not depend on what is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from spq_graph.documents.parsed import parse_json
from spq_graph.models.chatter import clipped, said
from spq_graph.models.hub import HubId
from spq_graph.terms.errors import SourceError

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
ADAPTER_CONFIG: Final = "adapter_config.json"
# These put tokens or states before the input, and change no weight.
_PROMPTS: Final = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")


def base_of(folder: Path) -> Path:
    """The folder with config.json and weights: itself, or of one that holds an adapter alone that of its base model.

    Raises:
        SourceError: the base model is not on this machine, or not named.
    """
    if (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return folder
    name = _read(folder).get("base_model_name_or_path")
    where = str(folder / ADAPTER_CONFIG)
    if not isinstance(name, str) or not name:
        raise SourceError(
            "an adapter whose base model is not named",
            where=where,
            remedy='Write the folder of the base model there, as "base_model_name_or_path".',
        )
    for place in (Path(os.path.expanduser(name)), folder / name):  # noqa: PTH111 -- Path's own raises for ~nobody
        with suppress(OSError):  # longer than a name may be
            if (place / "config.json").is_file():
                return place
    if _HUB_ID.fullmatch(name) and (cached := HubId(name).snapshot) is not None:
        return cached
    shown = clipped(name, 150)
    fetch = f"hf download {shown} --local-dir DIR, then write DIR" if _HUB_ID.fullmatch(name) else "Write its folder"
    raise SourceError(
        f"an adapter of {shown}, which is not on this machine",
        where=where,
        remedy=f"{fetch} there as base_model_name_or_path; spq-graph downloads nothing.",
    )


def check_adapter(folder: Path) -> list[Path]:
    """Refuse, before anything is loaded, an adapter that cannot be merged.

    Returns:
        The files of its weights; none where there is no adapter.

    Raises:
        SourceError: it has no weights, or peft is not installed.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return []
    kind = clipped(str(_read(folder).get("peft_type") or "unknown kind"), 40)
    if kind in _PROMPTS:
        raise SourceError(
            f"an adapter ({kind}) that changes no weights, so that it cannot be merged into them",
            where=str(folder),
            remedy=_without(folder, "Train one that can be merged, such as LoRA"),
        )
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not weights:
        raise SourceError(
            f"an adapter ({kind}) without its weights: neither {' nor '.join(_WEIGHTS)}",
            where=str(folder),
            remedy=_without(folder, "Bring its weights here"),
        )
    if importlib.util.find_spec("peft") is None:
        raise SourceError(
            f"an adapter ({kind}) that is not merged, and peft, which merges it, is not installed",
            where=str(folder),
            remedy=_without(folder, "pip install peft, and run this again"),
        )
    return weights[:1]  # as peft: what lies beside is not read


def merged(model: Any, folder: Path) -> Any:
    """The model with the adapter in `folder` merged into its weights, by peft; names stay those of the model.

    Raises:
        SourceError: peft cannot merge it, or adapter and model do not belong together.
    """
    from peft import PeftModel

    where = str(folder / ADAPTER_CONFIG)
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
        # The same again, since only this one tells what found no place: the first warns, of half of it.
        found = wrapped.load_adapter(str(folder), "default", torch_device="cpu")
        lost = sorted({*found.missing_keys, *found.unexpected_keys})
        whole = wrapped.merge_and_unload(safe_merge=True) if not lost else None
    except Exception as error:
        raise SourceError(
            f"the adapter ({clipped(str(_read(folder).get('peft_type')), 40)}) cannot be merged: {said(error)}",
            where=where,
            remedy=_without(folder, "Merge it where it was trained, and pass the merged model"),
        ) from error
    if whole is None:
        raise SourceError(
            f"adapter and model do not belong together: {len(lost)} tensors have no counterpart, "
            f"{clipped(', '.join(lost[:4]))}",
            where=where,
            remedy=_without(folder, "Take the adapter and its own base model"),
        )
    return whole


def _without(folder: Path, first: str) -> str:
    """A remedy, and what is left to those who want the base model."""
    alone = (folder / "config.json").is_file()
    rest = f"take {ADAPTER_CONFIG} out of the folder" if alone else "pass the folder of the base model"
    return f"{first}; or, for the model without the adapter, {rest}."


def _read(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"not readable as JSON: {error}", where=str(path), remedy=_without(folder, "Download it again")
        ) from error
    if not isinstance(content, dict):
        raise SourceError(
            f"a JSON object is expected, not a {type(content).__name__}",
            where=str(path),
            remedy=_without(folder, "Download it again"),
        )
    return content
