"""Every refusal has a remedy, and every remedy a test that follows it."""

from __future__ import annotations

import ast
import json
from collections import Counter

from docs.refusals import refusals, refusals_in
from docs.sentences import words
from tests.support.following import FOLDER, cases, named

OPEN = json.loads((FOLDER / "open.json").read_text(encoding="utf-8"))
# Remedies that lead out of what a test can do; they are raised all the same.
MOST_OUTSIDE = 12


def test_every_refusal_says_what_to_do() -> None:
    assert sorted(one.name for one in refusals() if one.remedy is None) == OPEN["without a remedy"]


def test_every_remedy_is_followed() -> None:
    """What is named here has no test marked `follows(place, words)` in tests/refusals; what is open may only shrink."""
    followed = Counter(case.refusal.name for case in cases())
    missing = Counter(one.name for one in refusals()) - followed
    assert sorted(missing.elements()) == OPEN["without a case"]


def test_what_cannot_be_followed_is_little_and_says_why() -> None:
    outside = [case.outside for case in cases() if case.outside is not None]
    assert all(len(reason.split()) > 3 for reason in outside)
    assert len(outside) <= MOST_OUTSIDE


def test_the_catalogue_reads_sentences_as_they_are_told() -> None:
    """By one of each kind: a plain one, one with values, one that depends, and one made for who calls."""
    plain = named("spq_graph/documents/artifact.py:check_out", "exists already")
    assert (plain.error, plain.exit_code) == ("OutputError", 1)
    assert plain.told("OUT exists already", "choose another, or replace it with --force")
    assert not plain.told("OUT exists", "choose another, or replace it with --force")
    valued = named("runtime/generation/sampling.py:Sampling.__post_init__", "temperature")
    assert (words(valued.sentences[0]), valued.exit_code) == ("a temperature of TEMPERATURE", 2)
    assert valued.told("a temperature of -1", "--temperature 0 is greedy, 1 the model's.")
    assert len({one.remedy for one in refusals() if one.place == "models/source.py:_config"}) > 1
    called = named("runtime/proof/held.py:_refuse", "did not run as integer kernels")
    assert called.told("2 sites planned as integers did not run as integer kernels: a, b", words(called.remedy or ()))


OWN_WORDS = """
from spq_graph.terms.words import DOWN

class SpqError(Exception):
    exit_code = 1
    def __init__(self, what, *, remedy=""): ...

class CheckError(SpqError):
    exit_code = 3

class OwnError(CheckError):
    def __init__(self, place):
        super().__init__(f"it is not there: {place}", remedy="look elsewhere")

def look(place, more=None):
    remedy = "look up" if more is None else DOWN
    if more:
        raise OwnError(place)
    if place == "here":
        what = "it is not here"
        raise CheckError(what, remedy=DOWN)
    what = "it is nowhere"
    if more == "else":
        raise CheckError(what, remedy=DOWN)
    raise CheckError("it is " + ("gone" if place else "lost"), remedy=remedy)

def either(first, place):
    rest = "or wait" if place else "or leave"
    if first == place:
        return f"{first}, {rest}"
    return "come back"

def after(place):
    return f"later than {place}. " if place else ""

def now(place):
    return ""

def seek(place):
    raise CheckError("it hides", remedy=either("look in " + place, place))

def find(place):
    raise CheckError("it hides", remedy=f"{after(place) or now(place)}Look again, {place or 'here'}, at {str(place)}")
"""


def test_an_error_that_words_itself_is_one_refusal_and_each_remedy_another() -> None:
    trees = {"passes/own.py": ast.parse(OWN_WORDS), "spq_graph/terms/words.py": ast.parse('DOWN = "look down"')}
    found = list(refusals_in(trees))
    assert [(one.function, one.error, one.exit_code, words(one.remedy or ())) for one in found[:5]] == [
        ("OwnError.__init__", "OwnError", 3, "look elsewhere"),
        ("look", "CheckError", 3, "look down"),
        ("look", "CheckError", 3, "look down"),
        ("look", "CheckError", 3, "look up"),
        ("look", "CheckError", 3, "look down"),
    ]
    assert [words(one.remedy or ()) for one in found if one.function in ("seek", "find")] == [
        "come back",
        "look in PLACE, or wait",
        "look in PLACE, or leave",
        "later than PLACE. Look again, PLACE, at PLACE",
        "Look again, PLACE, at PLACE",
    ]
    assert [list(map(words, one.sentences)) for one in found[:4]] == [
        ["it is not there: PLACE"],
        ["it is not here"],
        ["it is nowhere"],
        ["it is gone", "it is lost"],
    ]
