"""Whether head and embedding go into 8-bit weights by block, as bytes and measured KL allow. Pure, as `decide` is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

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
_STAYS = "it stays as it is"
# Of the budget, what head and embedding may cost for the rest to leave room for them.
ENDS_SHARE = 0.25

Free = Mapping[Role, Sequence[Choice]]
"""Heads and embeddings that are to be decided over."""
Option = Mapping[Role, Precision]
"""What is tried together, and in which precision."""
Alone = Callable[[Mapping[str, Precision]], tuple[float, float | None]]
"""KL of sites in these precisions while the rest is as the graph has it, and its standard error where that is known."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What `settle_ends` measures by.

    Attributes:
        plan: KL of the plan as its choices are, nats a token; infinite where the graph cannot have them.
        alone: KL of one site alone in a precision, and its standard error where that is known.
    """

    plan: Callable[[], float]
    alone: Alone


def room_for_ends(choices: Collection[Choice], held: Mapping[str, Held], recipe: Recipe, alone: Alone) -> float:
    """The KL that the rest of the plan is to leave free for head and embedding in 8 bits, nats a token.

    They are half of a small model's bytes: the first form in which they cost no more than a quarter of the budget is
    worth more than anything else that KL could buy. What the recipe says of them is done.

    Args:
        choices: of all sites.
        held: how what heads and embeddings read lies in the file, by key.
        recipe: what is wanted.
        alone: what measures.
    """
    free = _undecided(choices, held, recipe, measured=True)
    for option in _options(free, [c for c in choices if c.site.key in held], held, recipe) if free else ():
        kl, _ = alone({choice.site.key: to for role, to in option.items() for choice in free[role]})
        if kl <= ENDS_SHARE * recipe.kl_budget:
            return kl
    return 0.0


def settle_ends(
    choices: Collection[Choice],
    held: Mapping[str, Held],
    recipe: Recipe,
    by: Measured | None,
    room: float = 0.0,
    *,
    by_token: bool = False,
) -> None:
    """Decide over heads and embeddings that nothing else was said of, in place.

    What the recipe asks for is done. What it leaves open goes into 8 bits where the KL of the whole plan then stays
    within `allowance`: both, with the head by token where all else is, or in the fastest blocks that do; or else the
    head, or the embedding. That is left alone where it would store more, since the table of a tied head that stays as
    it is stays as well.

    Args:
        choices: of all sites, where everything else is settled.
        held: how what heads and embeddings read lies in the file, by key.
        recipe: what is wanted.
        by: what measures; None where nothing is.
        room: what the rest was asked to leave free for them.
        by_token: whether the head is to be tried by token: where all else has scales by token, or branches.
    """
    free = _undecided(choices, held, recipe, measured=by is not None)
    if free and by is not None:
        ends = [c for c in choices if c.site.key in held]
        options = list(_options(free, ends, held, recipe, by_token=by_token))
        _by_kl(free, options, by, allowance(by.plan(), recipe, room))


def _undecided(
    choices: Collection[Choice], held: Mapping[str, Held], recipe: Recipe, *, measured: bool
) -> dict[Role, list[Choice]]:
    """Heads and embeddings that nothing but a measurement can decide over; the others are decided."""
    free: dict[Role, list[Choice]] = {}
    for choice in choices:
        # A head may be treated like any other site.
        if choice.site.key in held and choice.reason is Reason.DEFAULT and choice.precision is choice.stored:
            if _settled(choice, held[choice.site.key], recipe, measured=measured):
                continue
            free.setdefault(choice.site.role, []).append(choice)
    return free


def allowance(as_is: float, recipe: Recipe, room: float = 0.0) -> float:
    """The KL that a plan may have with head and embedding in 8 bits, nats a token.

    What they cost counts against the budget like any other site's. Where that is not met without them, they may cost
    the margin that the recipe leaves free of it.

    Args:
        as_is: KL without them.
        recipe: budget and margin.
        room: what the rest was asked to leave free for them.
    """
    if as_is <= recipe.kl_budget:
        return recipe.kl_aim if as_is <= recipe.kl_aim - room else recipe.kl_budget
    return as_is + recipe.kl_budget - recipe.kl_aim


def _settled(choice: Choice, held: Held, recipe: Recipe, *, measured: bool) -> bool:
    """Whether a choice is decided before anything is measured; it is, then."""
    name, formats = _CALLED[choice.site.role], _formats(choice, recipe)
    wish = recipe.head if choice.site.role is Role.LM_HEAD else recipe.embedding
    if wish == "8bit" and formats:
        choice.precision, choice.reason = formats[0], Reason.ASKED
        choice.note = f"the recipe asks for it: {name} = {wish}"
    elif wish == "as_is":
        choice.note = f"{_STAYS}: {name} = {wish}"
    elif not formats:
        choice.note = f"{_STAYS}: {recipe.profile.why_not(Precision.W8A16, choice.site.role)}"
    elif held.coded >= held.size:
        choice.note = f"{_STAYS}: 8-bit codes and their scales would take more bytes"
    elif not measured:
        choice.note = f"{_STAYS}, for no KL was measured; {name} = 8bit asks for 8-bit weights all the same"
    else:
        return False
    return True


def _formats(choice: Choice, recipe: Recipe) -> list[Precision]:
    """What 8-bit weights by block are for a head or an embedding on the recipe's target, the fastest first."""
    profile, (channels, _) = recipe.profile, choice.site.shape
    if choice.site.role is Role.EMBEDDING:
        return [Precision.W8A16] if profile.allows_at(Role.EMBEDDING, Precision.W8A16) else []
    return [p for p in profile.head_formats if p.row.block is None or channels % (2 * p.row.block) == 0]


def _by_kl(free: Free, options: Iterable[Option], by: Measured, allowed: float) -> None:
    for choice in (c for some in free.values() for c in some):
        choice.note = f"{_STAYS}: its table would be stored a second time, beside the one that the head reads"
    for option in options:
        tried = [(choice, to) for role, to in option.items() for choice in free[role]]
        for choice, to in tried:
            choice.precision = to
        kl = by.plan()
        for choice, _ in tried:
            _tell(choice, kl, allowed, by)
        if kl <= allowed:
            return


def _options(
    free: Free, ends: Sequence[Choice], held: Mapping[str, Held], recipe: Recipe, *, by_token: bool = False
) -> Iterator[Option]:
    """What to try, in this order; nothing by which the embedding makes the file larger."""
    first = [Precision.W8A8_TOKEN] if by_token else []
    heads: list[Option] = [
        {Role.LM_HEAD: to} for c in free.get(Role.LM_HEAD, ())[:1] for to in (*first, *_formats(c, recipe))
    ]
    table: Option = {Role.EMBEDDING: Precision.W8A16} if Role.EMBEDDING in free else {}

    def smaller(head: Option) -> bool:
        with_table = _stored(ends, {**head, **table}, free, held, recipe)
        return bool(table) and with_table < _stored(ends, head, free, held, recipe)

    for head in heads:
        yield {**head, **table} if smaller(head) else head
    if heads and smaller(heads[-1]):
        yield heads[-1]
    if smaller({}):
        yield table


def _stored(ends: Sequence[Choice], option: Option, free: Free, held: Mapping[str, Held], recipe: Recipe) -> int:
    """Bytes that heads and embeddings take: each table that is read as it is, and each layout of its codes, once."""
    found: dict[tuple[str, object], int] = {}
    tables = {held[choice.site.key].table for choice in ends if choice.site.role is Role.LM_HEAD}
    for choice in ends:
        own, role = held[choice.site.key], choice.site.role
        to = option.get(role, choice.precision) if choice in free.get(role, ()) else choice.precision
        if to is choice.stored or own.by_others:
            found[own.table, None] = own.size
        if to is not choice.stored:
            form = recipe.profile.form_at(role, to)
            if role is Role.EMBEDDING and option.get(Role.LM_HEAD) is Precision.W8A8_TOKEN and own.table in tables:
                form = Form.BY_TOKEN  # it reads the panels of the head
            found[own.table, _AS_ONE if form in _AS_ONE else form] = own.coded
    return sum(found.values())


def _tell(choice: Choice, kl: float, allowed: float, by: Measured) -> None:
    """Say of a choice what was tried, and put it back where that is too much: it may be part of what is tried next."""
    alone, choice.kl_stderr = by.alone({choice.site.key: choice.precision})
    choice.kl = six(alone) if isfinite(alone) else None
    told = f"as {choice.precision} the plan has KL {kl:.3g}, of {allowed:.3g} allowed"
    if kl <= allowed:
        choice.reason, choice.note = Reason.WITHIN_BUDGET, told
    else:
        choice.precision, choice.reason, choice.note = choice.stored, Reason.OVER_BUDGET, f"{_STAYS}: {told}"
