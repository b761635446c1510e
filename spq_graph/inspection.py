"""Inspection: what is in a file, ours or not, and what two plans decide differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spq_graph import artifact
from spq_graph.errors import UsageError
from spq_graph.passes.annotate import PREFIX
from spq_graph.passes.graph import QUANTIZED_OPS, Canonicalize, load_graph
from spq_graph.passes.identify import Identified, identify
from spq_graph.passes.unquantize import LookThroughQuantization
from spq_graph.passes.verify import precision_of
from spq_graph.plan import Plan
from spq_graph.recipe import matches


def inspect_path(path: Path, only: str | None = None) -> dict[str, Any]:
    """What an ONNX file or OUT folder holds, as `inspect --json` prints it.

    Raises:
        SourceError: the file cannot be read.
        UsageError: `only` fits no site.
    """
    file = artifact.model_file(path)
    model = load_graph(file)
    Canonicalize()(model)
    precisions = {node.name: _recorded(node, "precision") or _precision(node) for node in model.graph}
    if any(node.op_type in QUANTIZED_OPS for node in model.graph):
        LookThroughQuantization()(model)
    found = identify(model)
    plan_file = file.with_name(artifact.PLAN)
    recorded = Plan.load(plan_file) if path.is_dir() and plan_file.is_file() else None
    sites = recorded.to_dict()["sites"] if recorded is not None else _sites_of(model, found, precisions)
    if only is not None:
        sites = [s for s in sites if matches(only, s["key"], s["node"])]
        if not sites:
            raise UsageError(f"'{only}' fits no site", where=str(path), remedy="leave out --site to list all of them")
    unmatched = recorded.to_dict()["unmatched"] if recorded is not None else [
        {"node": u.node, "reason": u.reason} for u in found.unmatched
    ]  # fmt: skip
    return {"path": str(path), "glu_blocks": len(found.blocks), "sites": sites, "unmatched": unmatched}


def _precision(node: ir.Node) -> str:
    """As it is in the file, which somebody else may have quantized to bits that we have no name for."""
    bits = node.attributes.get("bits") if node.op_type == "MatMulNBits" else None
    return precision_of(node).value if bits is None else f"w{int(bits.value)}a16"


def _recorded(node: ir.Node, what: str) -> str | None:
    return node.metadata_props.get(f"{PREFIX}{what}")


def _sites_of(model: ir.Model, found: Identified, precisions: dict[str | None, str]) -> list[dict[str, Any]]:
    nodes = {node.name: node for node in model.graph}
    return [
        {
            "key": s.key, "node": s.node, "role": s.role.value, "layer": s.layer, "expert": s.expert,
            "shape": list(s.shape), "input": s.input,
            "precision": precisions[s.node], "reason": _recorded(nodes[s.node], "reason"), "evidence": {},
        }
        for s in found.sites
    ]  # fmt: skip


def show(found: dict[str, Any], console: Console, *, why: bool = False, unmatched: bool = False) -> None:
    """Print an inspection."""
    sites = found["sites"]
    console.print(f"{escape(found['path'])}: {found['glu_blocks']} GLU blocks, {len(sites)} sites", highlight=False)
    if unmatched:
        for entry in found["unmatched"]:
            console.print(f"  {escape(entry['node'])}: {escape(entry['reason'])}", highlight=False, soft_wrap=True)
        if not found["unmatched"]:
            console.print("  nothing was left unmatched")
        return
    if why:
        for site in sites:
            _show_why(site, console)
        return
    table = Table("site", "role", "K x N", "precision", "reason", "ratio", box=None, pad_edge=False)
    for site in sites:
        ratio = site["evidence"].get("ratio")
        table.add_row(
            escape(site["key"]), site["role"], f"{site['shape'][0]} x {site['shape'][1]}", site["precision"],
            site["reason"] or "–", f"{ratio:.1f}" if ratio is not None else "–",
        )  # fmt: skip
    console.print(table)
    if found["unmatched"]:
        console.print(f"{len(found['unmatched'])} products are no sites: --unmatched says why")


def _show_why(site: dict[str, Any], console: Console) -> None:
    console.print(
        f"[bold]{escape(site['key'])}[/]  {site['precision']}  {site['reason'] or 'no plan recorded'}", highlight=False
    )
    for name, value in site["evidence"].items():
        console.print(f"    {name}: {escape(repr(value) if isinstance(value, str) else str(value))}", highlight=False)


def diff_plans(path_a: Path, path_b: Path) -> dict[str, Any]:
    """What two plans decide differently: sites whose precision or reason differs, and sites of one only."""
    a, b = (Plan.load(p / artifact.PLAN if p.is_dir() else p) for p in (path_a, path_b))
    sites_a, sites_b = ({s.key: s for s in plan.sites} for plan in (a, b))
    changed = [
        {
            "key": key,
            "a": {"precision": sites_a[key].precision.value, "reason": sites_a[key].reason.value},
            "b": {"precision": sites_b[key].precision.value, "reason": sites_b[key].reason.value},
        }
        for key in sites_a
        if key in sites_b
        and (sites_a[key].precision, sites_a[key].reason) != (sites_b[key].precision, sites_b[key].reason)
    ]
    return {
        "same_model": a.model.digest == b.model.digest,
        "changed": changed,
        "only_a": [k for k in sites_a if k not in sites_b],
        "only_b": [k for k in sites_b if k not in sites_a],
    }


def show_diff(found: dict[str, Any], console: Console) -> None:
    """Print what `diff_plans` found."""
    if not found["same_model"]:
        console.print("note: the plans are for different models")
    if not (found["changed"] or found["only_a"] or found["only_b"]):
        console.print("the plans decide the same")
        return
    for entry in found["changed"]:
        a, b = entry["a"], entry["b"]
        console.print(
            f"{escape(entry['key'])}: {a['precision']} ({a['reason']}) -> {b['precision']} ({b['reason']})",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    for side in ("a", "b"):
        for key in found[f"only_{side}"]:
            console.print(f"{escape(key)}: only in plan {side.upper()}", highlight=False, soft_wrap=True)
