"""What the user wants. Validated, and unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import core_schema

from spq_graph.documents.content import content_of
from spq_graph.documents.preset import preset as preset_named
from spq_graph.documents.remedies import Remedies
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision, today
from spq_graph.terms.site import Role
from spq_graph.terms.targets import PROFILES, Profile, Target, Use


@dataclass(frozen=True, slots=True)
class OneOf:
    """Text that is one of these words, and which are these; names of the first edition are read as today's."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """What pydantic checks, as of a Literal."""
        allowed = core_schema.literal_schema(list(self.words))
        return core_schema.no_info_before_validator_function(_today, allowed)


def _today(value: Any) -> Any:
    return today(value) if isinstance(value, str) else value


CALIBRATION_TOKENS = 65_536
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
MOST = 2**53  # of what is counted and seeded with: JSON holds no larger number that every reader takes for the same

# What becomes of the weights at either end of a model.
Ends = Literal["auto", "8bit", "as_is"]

ROUNDED = tuple(p for p in Precision if p.is_fp8 and p.needs_range)
# "fp8" is that of `ROUNDED` with the smaller measured error.
HighPrecision = Annotated[str, OneOf(("auto", "fp8", *(p.value for p in Precision if p.bits is None)))]


class Override(BaseModel):
    """A precision for all sites whose key or node name matches a glob."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str
    precision: Annotated[str, OneOf((*(p.value for p in Precision), "high"))]


class Recipe(BaseModel):
    """What the user wants done, independent of any model."""

    # Infinity has no place in JSON, and every recipe ends up in a plan.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    target: Target = Field("cpu", description="what the artifact is compiled for")
    use: Use = Field(
        "balanced",
        description="what the model mostly does: prefill prefers kept formats that are fast on long prompts; decode "
        "keeps as many sites as the budget asks for, since all 8-bit forms wait for memory there",
    )
    reduce_range: bool = Field(
        False, description="7-bit weights at 8-bit sites, for x86 without VNNI, where sums of two products saturate"
    )
    bits: int = Field(8, ge=4, le=8, description="bits of weights and activations at integer sites")
    high_precision: HighPrecision = Field(
        "auto", description="what kept sites become; auto takes the cheapest format that measuring allows"
    )
    spike_ratio: float | None = Field(
        None, gt=1.0, description="keep every site whose max/median ratio exceeds this, without any evaluation"
    )
    kl_budget: float = Field(
        0.005,
        gt=0.0,
        description="KL(FP || quantized) to reach, nats a token; where it is not given, outlier branches seek 1.5 "
        "times what 8-bit weights alone cost, from 0.003 to the default",
    )
    kl_margin: float = Field(
        0.2, ge=0.0, lt=1.0, description="share of the KL budget left free, for text that was not measured"
    )
    max_kept: float = Field(0.15, ge=0.0, le=1.0, description="largest share of sites that may be kept")
    recovery: float = Field(
        0.98, gt=0.0, le=1.0, description="share of what max_kept wins back to settle for where the budget is not met"
    )
    candidate_ratio: float = Field(3.0, ge=0.0, description="sites below this max/median ratio are never candidates")
    sensitivity_tokens: int = Field(
        4096, ge=1, le=MOST, description="tokens of calibration data that decisions are measured on"
    )
    activations: Literal["asymmetric", "symmetric"] = Field("asymmetric", description="activation quantizer")
    scales: Literal["auto", "static", "by_token"] = Field(
        "auto",
        description="of 8-bit integer activations: static ones, or one for each token, worked out as the product goes; "
        "auto is static, and by token where kept sites with static ones do not meet the KL budget, the target has it, "
        "and high_precision is auto",
    )
    weights: Literal["per_channel", "per_tensor"] = Field("per_channel", description="weight scales")
    fp8_activations: Literal["fast", "exact"] = Field(
        "fast", description="w8fp8a16: whether a kernel may round activations to bfloat16, or takes them as they are"
    )
    quantize_lm_head: bool = Field(False, description="treat lm_head like any other site")
    head: Ends = Field(
        "auto", description="lm_head: 8-bit weights where measured KL allows (auto), by block in any case, or never"
    )
    embedding: Ends = Field(
        "auto", description="the table that tokens are looked up in, alike; one with lm_head where the two are tied"
    )
    keep: tuple[str, ...] = Field(
        (), description="sites to keep in high precision by hand: keys, ends of keys (down_proj), or globs"
    )
    ignore: tuple[str, ...] = Field((), description="sites to leave untouched, named likewise")
    overrides: tuple[Override, ...] = Field((), description="precision of sites named likewise; the last match wins")
    remedies: Remedies = Field(Remedies(), description="what is done about spikes besides keeping sites, by remedy")
    min_expert_tokens: int = Field(
        64, ge=0, le=MOST, description="calibration tokens that an expert must have seen for its range to be trusted"
    )
    calibration_tokens: int = Field(CALIBRATION_TOKENS, ge=1, le=MOST, description="how much calibration data is read")
    sample_chat: bool = Field(True, description="sample calibration text by a chat template, where there is one")
    seed: int = Field(0, ge=0, le=MOST, description="seeds the sampling of calibration text and the random controls")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_target(cls, given: Any) -> Any:
        """What follows from other keys, where it was not given: it then stands in the plan like any other choice."""
        if not isinstance(given, dict):
            return given
        profile = PROFILES.get(str(given.get("target", "cpu")))
        if profile is not None and profile.signed:
            given = {"activations": "symmetric", **given}
        return {"max_kept": 1.0, **given} if given.get("use") == "decode" else given

    @model_validator(mode="after")
    def _legal_on_target(self) -> Recipe:
        if self.profile.signed and self.activations != "symmetric":
            raise ValueError(f"target '{self.target}' takes signed integers with zero point 0: activations = symmetric")
        if self.head == "8bit" and not self.profile.head_formats:
            why = self.profile.why_not(Precision.W8A16)
            raise ValueError(f"target '{self.target}' cannot run head = 8bit: {why}; use auto, or another target")
        if self.embedding == "8bit" and self.profile.lookup is None:
            why = self.profile.why_not(Precision.W8A16, Role.EMBEDDING)
            raise ValueError(f"target '{self.target}' cannot run embedding = 8bit: {why}; use auto, or another target")
        if self.scales == "by_token" and self.bits != 8:
            raise ValueError(f"scales = by_token are of 8 bits, not of {self.bits}: leave bits at 8, or scales at auto")
        if self.scales == "by_token" and not self.allows(Precision.W8A8_TOKEN):
            why = self.profile.why_not(Precision.W8A8_TOKEN)
            raise ValueError(f"target '{self.target}' cannot run scales = by_token: {why}; use auto, or target cpu")
        for name in (self.high_precision, *(o.precision for o in self.overrides)):
            if not _is_legal(name, self.profile):
                why, legal = self.profile.why_not(_asked(name)[0]), ", ".join(self.profile.high)
                raise ValueError(
                    f"target '{self.target}' cannot run {name}: {why}; use one of {legal}, or another target"
                )
        return self

    @property
    def profile(self) -> Profile:
        """What the target executes."""
        return PROFILES[self.target]

    @property
    def may_scale_by_token(self) -> bool:
        """Whether all sites may get scales by token where static ones do not do.

        Not where sites were to be kept in a format that was named.
        """
        asked = self.scales == self.high_precision == "auto" and self.bits == 8
        return asked and Precision.W8A8_TOKEN in self.profile.everywhere

    @property
    def tokens_asked(self) -> int | None:
        """The limit of calibration data where it was given, be it the default's number; None where it is the default.

        Text sampled from the model costs more than text that is read, so only who asks for so much of it gets it.
        """
        return self.calibration_tokens if "calibration_tokens" in self.model_fields_set else None

    @property
    def kl_aim(self) -> float:
        """The KL to aim at: the budget less its margin, nats a token."""
        return self.kl_budget * (1.0 - self.kl_margin)

    def allows(self, precision: Precision) -> bool:
        """Whether the target can run a precision."""
        return self.profile.allows(precision)


def _is_legal(name: str, profile: Profile) -> bool:
    """Whether a target can do what a recipe calls by this name: a precision, or a word for several."""
    return not (asked := _asked(name)) or any(map(profile.allows, asked))


def legal_name(name: str, profile: Profile) -> str | None:
    """What a recipe for a target calls what another calls by this name; None where nothing comes near it there."""
    if _is_legal(name, profile):
        return name
    return next((near.value for one in _asked(name) for near in one.row.nearest if profile.allows(near)), None)


def _asked(name: str) -> tuple[Precision, ...]:
    """The precisions of which the target must have one; none for words that leave it open."""
    if name in ("auto", "high"):
        return ()
    return ROUNDED if name == "fp8" else (Precision(name),)


def load_recipe(path: str | Path | None = None, *, preset: str | None = None, **given: Any) -> Recipe:
    """Read a recipe file and lay the options that were given over it.

    Args:
        path: a TOML file, or None.
        preset: the name of one that it is laid over, or None. What its formats are on a target is settled by that.
        given: fields of a recipe, as the options of the command line are; those that are None are not given.

    Raises:
        UsageError: there is no such preset, the file cannot be read, or a key or value is not valid.
    """
    base = preset_named(preset).fields if preset is not None else {}
    fields = _fields_in(Path(path)) if path is not None else {}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(tables := fields.get("remedies"), dict) and "remedies" in given:  # the rest of a table stays
        given["remedies"] = tables | {
            name: {**table, **wanted} if isinstance(table := tables.get(name, {}), dict) else table
            for name, wanted in given["remedies"].items()
        }
    fields |= given
    profile = PROFILES.get(str(fields.get("target", base.get("target", "cpu"))))
    fields = (_settled(base, profile) if profile is not None else base) | fields
    try:
        return Recipe.model_validate(fields)
    except ValidationError as cause:
        raise UsageError(
            _explain(cause),
            where=str(path) if path else f"--preset {preset}" if preset else "options",
            remedy="docs/recipe.md has every key with the values that it takes",
        ) from cause


def json_schema() -> dict[str, Any]:
    """What a recipe may hold, as JSON Schema, which editors hold TOML files against as well."""
    return {"$schema": SCHEMA, **Recipe.model_json_schema()}


def _fields_in(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(content_of(path).decode())
    except (OSError, ValueError, RecursionError) as cause:  # a number of too many digits is a ValueError, too
        reason = "it is nested too deep" if isinstance(cause, RecursionError) else cause
        raise UsageError(
            f"the recipe cannot be read: {reason}",
            where=str(path),
            remedy="name a TOML file in UTF-8, such as one with the single line: bits = 6",
        ) from cause


def _settled(base: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """A preset for a target: its formats, or those that come nearest to them there."""
    high = base.get("high_precision", "auto")
    overrides = [
        one | {"precision": legal_name(one["precision"], profile) or one["precision"]}
        for one in base.get("overrides", ())
    ]
    return (
        base
        | ({"high_precision": legal_name(high, profile) or high} if "high_precision" in base else {})
        | ({"overrides": overrides} if overrides else {})
        | ({"scales": "auto"} if "scales" in base and not profile.allows(Precision.W8A8_TOKEN) else {})
    )


def _explain(cause: ValidationError) -> str:
    lines = []
    for problem in cause.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{name}'; known keys: {', '.join(sorted(_beside(problem['loc'])))}")
        else:
            lines.append(f"{name}: {problem['msg']} (found {problem['input']!r:.80})" if name else problem["msg"])
    return "; ".join(lines)


def _beside(place: Sequence[object]) -> Mapping[str, object]:
    """The fields of the table of a recipe in which a key stands."""
    table: type[BaseModel] = Recipe
    for part in place[:-1]:
        held = table.model_fields[part].annotation if isinstance(part, str) and part in table.model_fields else None
        if isinstance(held, type) and issubclass(held, BaseModel):
            table = held
        elif isinstance(part, str):  # of a list, whose entries are overrides
            table = Override
    return table.model_fields
