"""A small plan and report, with names as hostile as models and tokenizers may bring them."""

from __future__ import annotations

from dataclasses import replace

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.plan import Evidence, ModelRef, Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report, Rung, TextRef
from spq_graph.documents.search import Search
from spq_graph.documents.verdict import Standing, Verdict
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY, RowId, RowKind, Scheme
from spq_graph.terms.site import Role, Site, Unmatched

HOSTILE = "<script>alert('x')</script>\"&\n\x1b[31m\u202eevil[red]{{ 7*7 }}"
_SHAPES = {Role.GLU_GATE: (160, 432), Role.GLU_UP: (160, 432), Role.GLU_DOWN: (432, 160)}
_MODULES = {
    Role.ATTN_Q: "self_attn.q_proj",
    Role.ATTN_K: "self_attn.k_proj",
    Role.ATTN_V: "self_attn.v_proj",
    Role.ATTN_O: "self_attn.o_proj",
    Role.GLU_GATE: "mlp.gate_proj",
    Role.GLU_UP: "mlp.up_proj",
    Role.GLU_DOWN: "mlp.down_proj",
}
_SPIKES = {1: 412.5, 3: 36.0, 5: 20.5}


def sample_site(layer: int, role: Role, *, hostile: bool = False) -> SitePlan:
    key = f"model.layers.{layer}.{_MODULES[role]}" + (HOSTILE if hostile else "")
    ratio = _SPIKES.get(layer, 4.5) if role is Role.GLU_DOWN else 1.4 + 0.3 * layer
    kept = role is Role.GLU_DOWN and layer in (1, 3)
    budget = role is Role.GLU_DOWN and layer == 5
    return SitePlan(
        site=Site(
            key=key,
            node=f"node_MatMul_{layer}_{role.value}",
            role=role,
            layer=layer,
            shape=_SHAPES.get(role, (160, 160)),
            input=f"value_{layer}_{role.value}",
        ),
        precision=Precision.FP32 if kept else Precision.INT8,
        reason=Reason.SPIKE if kept else Reason.BUDGET if budget else Reason.DEFAULT,
        range=(-1.5, 1.6 * ratio),
        evidence=Evidence(
            ratio=ratio,
            max=1.6 * ratio,
            median=1.6,
            token=1,
            token_text=HOSTILE if hostile else "<s>",
            position=0,
            kl=ratio / 9000 if role is Role.GLU_DOWN else None,
            rank=list(_SPIKES).index(layer) if kept or budget else None,
            note="quantizing it alone costs 9 times the budget" if kept else None,
        ),
    )


def sample_plan(layers: int = 8, *, hostile: bool = False) -> Plan:
    sites = [sample_site(n, role, hostile=hostile and n == 1) for n in range(layers) for role in _MODULES]
    head = SitePlan(
        site=Site(key="lm_head", node="node_lm_head", role=Role.LM_HEAD, layer=None, shape=(160, 2048), input="hidden"),
        precision=Precision.FP32,
        reason=Reason.DEFAULT,
        evidence=Evidence(ratio=2.2, max=14.0, median=6.4),
    )
    name = HOSTILE if hostile else "node_MatMul_scores"
    return Plan(
        model=ModelRef(digest="sha256:" + "3f" * 32, origin=HOSTILE if hostile else "reference"),
        recipe=Recipe(bits=8, calibration_tokens=16_384),
        calibration=CalibrationRef(digest="sum-sha256:" + "a1" * 32, tokens=16_384, sequences=64, origin="valid.txt"),
        search=Search(
            rule="auto",
            candidates=12,
            evaluations=16,
            tokens=4096,
            cap=8,
            kl_everywhere=0.0312,
            kl=0.0041,
            budget=0.005,
        ),
        sites=[*sites, head],
        budget_met=True,
        unmatched=[Unmatched(name, "both operands are computed: no constant weight")],
    )


def big_plan() -> Plan:
    """715 layers with seven sites each, as many again as in the largest models."""
    plan = sample_plan(715)
    for number, site in enumerate(plan.sites):
        site.site = replace(site.site, node=f"node_MatMul_{number}")
    return plan


def sample_rung(row: RowId, bits: int | None, change: float) -> Rung:
    keeping = (RowKind.SPIKE_AWARE, RowKind.CONTROL_LOWEST, RowKind.CONTROL_RANDOM)
    keys = [site.key for site in sample_plan().kept] if row.kind in keeping else []
    kernels = 0 if row == FP32 else 56 - len(keys)
    kernel = "MatMulNBits" if row == WEIGHT_ONLY else "MatMulIntegerToFloat"
    executed = {"MatMul": 17 + 56 - kernels, "Add": 16, "Mul": 40, kernel: kernels}
    perplexity = 20.04 * (1 + change)
    return Rung(
        id=row,
        bits=bits,
        perplexity=perplexity,
        perplexity_stderr=perplexity * 0.012,
        nll=3.0,
        nll_stderr=0.012,
        kl=abs(change) * 0.8,
        kl_stderr=abs(change) * 0.05,
        top1=max(0.0, 1 - abs(change)),
        bytes=7_640_000 - 90_000 * kernels,
        kept=keys,
        executed={k: n for k, n in executed.items() if n},
    )


def sample_ladder() -> list[Rung]:
    rungs = [sample_rung(FP32, None, 0.0)]
    for bits, scale in ((8, 1.0), (6, 14.0)):
        rungs += [
            sample_rung(EVERYWHERE, bits, 0.0071 * scale),
            sample_rung(RowId(RowKind.EVERYWHERE, scheme=Scheme.SYMMETRIC), bits, 0.0162 * scale),
            sample_rung(RowId(RowKind.EVERYWHERE, scheme=Scheme.PER_TENSOR_WEIGHTS), bits, 0.0195 * scale),
            sample_rung(SPIKE_AWARE, bits, 0.0004 * scale),
            sample_rung(RowId(RowKind.CONTROL_LOWEST), bits, 0.0070 * scale),
            *(
                sample_rung(RowId(RowKind.CONTROL_RANDOM, seed=seed), bits, (0.0066 + 0.0002 * seed) * scale)
                for seed in (1, 2, 3)
            ),
            sample_rung(WEIGHT_ONLY, bits, -0.0001 * scale),
        ]
    return rungs


def sample_report(*, ladder: bool = True, hostile: bool = False) -> Report:
    return Report(
        verdict=Verdict(
            ready=True,
            status=Standing.READY,
            summary=HOSTILE if hostile else "Within 0.5 % of FP32, and every planned site runs as an integer kernel.",
            warnings=[HOSTILE] if hostile else ["Calibration data was sampled from the model itself."],
        ),
        ladder=sample_ladder() if ladder else [],
        text=TextRef(digest="sha256:" + "c4" * 32, tokens=61_440, origin="test.txt") if ladder else None,
        executed={"MatMulIntegerToFloat": 54, "MatMul": 19, "QuantizeLinear": 28, "Mul": 40, "Add": 16, "Softmax": 8},
        providers={"CPUExecutionProvider": 412},
        seconds={"export": 14.2, "calibrate": 21.8, "decide": 34.0, "insert": 1.2, "evaluate": 125.3},
        peak_rss_bytes=812_000_000,
        bytes=2_780_000,
        source_bytes=7_640_000,
        environment={"spq-graph": "0.1.0", "python": "3.11.4", "onnxruntime": "1.31.1", "cpu": "AVX512-VNNI, 2 cores"},
        command=HOSTILE if hostile else "spq-graph quantize reference -o out --bits 8 --bits 6 --text test.txt",
    )
