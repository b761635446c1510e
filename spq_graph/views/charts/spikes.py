"""The sites by layer and role, and how hot each place is."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.terms.site import Role

HEAT_STEPS = 10
STEPS_A_DECADE = 3
_FLOW = (
    Role.ATTN_Q,
    Role.ATTN_K,
    Role.ATTN_V,
    Role.ATTN_QKV,
    Role.ATTN_O,
    Role.ROUTER,
    Role.GLU_GATE,
    Role.GLU_UP,
    Role.GLU_GATE_UP,
    Role.GLU_DOWN,
    Role.EXPERT_GATE,
    Role.EXPERT_UP,
    Role.EXPERT_GATE_UP,
    Role.EXPERT_DOWN,
    Role.OTHER,
    Role.LM_HEAD,
    Role.EMBEDDING,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the spike map: the sites of one role in one layer, the highest ratio first."""

    sites: tuple[SitePlan, ...]

    @property
    def ratio(self) -> float | None:
        """The highest ratio here, None where nothing was measured."""
        return self.sites[0].evidence.ratio

    @property
    def kept(self) -> bool:
        """Whether a site here is kept in high precision on purpose."""
        return any(site.kept for site in self.sites)


@dataclass(frozen=True, slots=True)
class SpikeMap:
    """Layers x roles; `outside` are the sites that belong to no layer."""

    roles: tuple[Role, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    outside: tuple[SitePlan, ...]


def spike_map(plan: Plan) -> SpikeMap:
    """Arrange the sites by layer and, in the order in which data flows, by role."""
    places: dict[tuple[int, Role], list[SitePlan]] = {}
    for site in plan.sites:
        if site.layer is not None:
            places.setdefault((site.layer, site.role), []).append(site)
    present = {role for _, role in places}
    roles = tuple(role for role in _FLOW if role in present)

    def cell(layer: int, role: Role) -> Cell | None:
        sites = places.get((layer, role), [])
        return Cell(tuple(sorted(sites, key=lambda s: (-(s.evidence.ratio or 0.0), s.key)))) if sites else None

    layers = sorted({layer for layer, _ in places})
    rows = tuple((layer, tuple(cell(layer, role) for role in roles)) for layer in layers)
    return SpikeMap(roles, rows, tuple(site for site in plan.sites if site.layer is None))


def heat(ratio: float | None) -> int:
    """The colour step of a ratio: a fixed log scale from 1 to 1000, so that reports can be compared by eye."""
    if ratio is None or not ratio > 1.0:
        return 0
    return min(HEAT_STEPS - 1, int(min(log10(ratio), HEAT_STEPS) * STEPS_A_DECADE))
