"""Whether head and embedding go into 8-bit weights by block, as bytes and measured KL allow. Pure, as `decide` is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spq_graph.decisions.choices import Choice, six
from spq_graph.documents.plan import Reason
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.form import Form
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role

_CALLED = {Role.LM_HEAD: "head", Role.EMBEDDING: "embedding"}  # by a recipe
# Forms that read one layout of codes and scales, so that what is tied is stored once.
_AS_ONE = frozenset({Form.NBITS, Form.NBITS_FLOAT, Form.LOOKUP, Form.LOOKUP_NODES})
_ORDER = ((Role.LM_HEAD, Role.EMBEDDING), (Role.LM_HEAD,), (Role.EMBEDDING,))
_STAYS = "it stays as it is"

Free = Mapping[Role, Sequence[Choice]]
"""Heads and embeddings that are to be decided over."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What `settle_ends` measures by.

    Attributes:
        plan: KL of the plan as its choices are, nats a token; infinite where the graph cannot have them.
        alone: KL of one site alone in a precision, and its standard error where that is known.
    """

    plan: Callable[[], float]
    alone: Callable[[Mapping[str, Precision]], tuple[float, float | None]]


def settle_ends(choices: Collection[Choice], held: Mapping[str, Held], recipe: Recipe, by: Measured | None) -> None:
    """Decide over heads and embeddings that nothing else was said of, in place.

    What the recipe asks for is done. What it leaves open goes into 8 bits where the KL of the whole plan then stays
    within `allowance`: both, or else the head, or else the embedding. An embedding is left alone where that would store
    more, since the table of a tied head that stays as it is stays as well.

    Args:
        choices: of all sites, where everything else is settled.
        held: how what heads and embeddings read lies in the file, by key.
        recipe: what is wanted.
        by: what measures; None where nothing is.
    """
    free: dict[Role, list[Choice]] = {}
    for choice in choices:
        # A head may be treated like any other site.
        if choice.site.key in held and choice.reason is Reason.DEFAULT and choice.precision is choice.stored:
            if _settled(choice, held[choice.site.key], recipe, measured=by is not None):
                continue
            free.setdefault(choice.site.role, []).append(choice)
    if free and by is not None:
        _by_kl(free, [c for c in choices if c.site.key in held], held, recipe, by)


def allowance(as_is: float, recipe: Recipe) -> float:
    """The KL that a plan may have with head and embedding in 8 bits, nats a token.

    What they cost counts against the budget like any other site's. Where that is not met without them, they may cost
    the margin that the recipe leaves free of it.

    Args:
        as_is: KL without them.
        recipe: budget and margin.
    """
    if as_is <= recipe.kl_budget:
        return recipe.kl_aim if as_is <= recipe.kl_aim else recipe.kl_budget
    return as_is + recipe.kl_budget - recipe.kl_aim


def _settled(choice: Choice, held: Held, recipe: Recipe, *, measured: bool) -> bool:
    """Whether a choice is decided before anything is measured; it is, then."""
    name, to = _CALLED[choice.site.role], _eight_bits(choice.site.role, recipe)
    wish = recipe.head if choice.site.role is Role.LM_HEAD else recipe.embedding
    if wish == "8bit" and to is not None:
        choice.precision, choice.reason, choice.note = to, Reason.ASKED, f"the recipe asks for it: {name} = {wish}"
    elif wish == "as_is":
        choice.note = f"{_STAYS}: {name} = {wish}"
    elif to is None:
        choice.note = f"{_STAYS}: {recipe.profile.why_not(Precision.W8A16, choice.site.role)}"
    elif held.coded >= held.size:
        choice.note = f"{_STAYS}: 8-bit codes and their scales would take more bytes"
    elif not measured:
        choice.note = f"{_STAYS}, for no KL was measured; {name} = 8bit asks for 8-bit weights all the same"
    else:
        return False
    return True


def _eight_bits(role: Role, recipe: Recipe) -> Precision | None:
    """What 8-bit weights by block are for a role on the recipe's target; None where it has none."""
    if role is Role.EMBEDDING:
        return Precision.W8A16 if recipe.profile.allows_at(role, Precision.W8A16) else None
    return recipe.profile.by_block


def _by_kl(free: Free, ends: Sequence[Choice], held: Mapping[str, Held], recipe: Recipe, by: Measured) -> None:
    allowed = allowance(by.plan(), recipe)
    for choice in (c for some in free.values() for c in some):
        choice.note = f"{_STAYS}: its table would be stored a second time, in 8 bits beside what the head reads"
    for roles in _options(free, ends, held, recipe):
        tried = [choice for role in roles for choice in free[role]]
        for choice in tried:
            choice.precision = _eight_bits(choice.site.role, recipe) or choice.stored
        kl = by.plan()
        fits = kl <= allowed
        for choice in tried:
            _tell(choice, kl, allowed, by, fits=fits)
        if fits:
            break
    # What one option refused may be part of the next.


def _options(
    free: Free, ends: Sequence[Choice], held: Mapping[str, Held], recipe: Recipe
) -> Iterator[tuple[Role, ...]]:
    """What to try, in this order; nothing by which the embedding makes the file larger."""
    for roles in _ORDER:
        if all(role in free for role in roles):
            without = {c.site.key for role in roles if role is not Role.EMBEDDING for c in free[role]}
            tried = {c.site.key for role in roles for c in free[role]}
            if tried == without or _stored(ends, tried, held, recipe) < _stored(ends, without, held, recipe):
                yield roles


def _stored(ends: Sequence[Choice], tried: Collection[str], held: Mapping[str, Held], recipe: Recipe) -> int:
    """Bytes that heads and embeddings take: each table that is read as it is, and each layout of its codes, once."""
    found: dict[tuple[str, object], int] = {}
    for choice in ends:
        own, role = held[choice.site.key], choice.site.role
        to = _eight_bits(role, recipe) if choice.site.key in tried else choice.precision
        if to is None or to is choice.stored or own.by_others:
            found[own.table, None] = own.size
        if to is not None and to is not choice.stored:
            form = recipe.profile.form_at(role, to)
            found[own.table, _AS_ONE if form in _AS_ONE else form] = own.coded
    return sum(found.values())


def _tell(choice: Choice, kl: float, allowed: float, by: Measured, *, fits: bool) -> None:
    """Say of a choice what was tried, and put it back where that does not fit."""
    if choice.kl is None:
        alone, choice.kl_stderr = by.alone({choice.site.key: choice.precision})
        choice.kl = six(alone)
    told = f"in 8-bit weights by block the plan has KL {kl:.3g}, of {allowed:.3g} allowed"
    if fits:
        choice.reason, choice.note = Reason.WITHIN_BUDGET, told
    else:
        choice.precision, choice.reason, choice.note = choice.stored, Reason.OVER_BUDGET, f"{_STAYS}: {told}"
