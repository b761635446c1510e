"""The options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spq_graph.cli.terminal import unused
from spq_graph.terms.precision import SMALLEST_FIRST
from spq_graph.terms.targets import PROFILES

if TYPE_CHECKING:
    from spq_graph.runtime.generation.sampling import Sampling

MODEL_HELP = (
    "Hugging Face folder, .gguf or .onnx file, Hub id (org/name in the cache, hf://org/name downloads), "
    "or the word 'reference' (the embedded model)"
)

# The boxes of a verb's help, in the order in which their first options stand.
DATA, RECIPE, MODEL, WORK = "What is measured on", "What is decided", "How the model is read", "How the work is done"

Source = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="SOURCE")]
AnyModel = Annotated[
    str, typer.Argument(help="an .onnx or .gguf file, an OUT or Hugging Face folder, or a Hub id", metavar="PATH")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="folder to write", metavar="OUT")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Force = Annotated[bool, typer.Option("--force", help="replace an existing OUT of ours")]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="folder with tokenizer.json, for an .onnx file",
        metavar="DIR",
        show_default="the model's",
        rich_help_panel=MODEL,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="a recipe by name, under --recipe and the options: `spq-graph presets` shows them",
        metavar="NAME",
        rich_help_panel=RECIPE,
    ),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="recipe in TOML", metavar="FILE", rich_help_panel=RECIPE)
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="calibration data: text, JSON, JSON lines, Parquet, .npz of input_ids, or a data set by name, such as "
        "wikitext-2, ultrachat:2000 or hf://datasets/ORG/NAME:SPLIT",
        metavar="FILE|SET",
        show_default="text sampled from the model itself",
        rich_help_panel=DATA,
    ),
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option(min=1, help="tokens of calibration data", metavar="N", show_default="65536", rich_help_panel=DATA),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="evaluation text, or a data set by name; never the calibration data",
        metavar="FILE|SET",
        rich_help_panel=DATA,
    ),
]
Bos = Annotated[
    bool, typer.Option("--bos", help="prepend BOS even where the tokenizer does not", rich_help_panel=MODEL)
]
Window = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="tokens in a sequence",
        metavar="N",
        show_default="the model's length, at most 2048",
        rich_help_panel=MODEL,
    ),
]
*_SOME, _LAST = PROFILES
Target = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(_SOME)} or {_LAST}", metavar="NAME", show_default="cpu", rich_help_panel=RECIPE),
]
HighPrecision = Annotated[
    str | None,
    typer.Option(
        help="what kept sites become: auto (what measuring justifies), fp8 (of its two formats the better), "
        + ", ".join(p for p in SMALLEST_FIRST if p.bits is None),
        metavar="FORMAT",
        show_default="auto",
        rich_help_panel=RECIPE,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        help="keep these sites in high precision by hand (key, its end, or glob; repeatable)",
        metavar="GLOB",
        rich_help_panel=RECIPE,
    ),
]
SpikeRatio = Annotated[
    float | None,
    typer.Option(
        help="keep every site above this max/median ratio, without any evaluation", metavar="X", rich_help_panel=RECIPE
    ),
]
QuantizeLmHead = Annotated[
    bool, typer.Option("--quantize-lm-head", help="treat lm_head like any other site", rich_help_panel=RECIPE)
]
NoChat = Annotated[
    bool,
    typer.Option(
        "--no-chat",
        help="sample plain text where no data is given, not conversations by the model's chat template",
        rich_help_panel=DATA,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**53,
        help="seed of what is sampled and of random controls",
        metavar="N",
        show_default="0",
        rich_help_panel=DATA,
    ),
]
AllowNoGlu = Annotated[
    bool, typer.Option("--allow-no-glu", help="go on where the graph holds no GLU", rich_help_panel=MODEL)
]
Remedy = Annotated[
    list[str] | None,
    typer.Option(
        "--remedy",
        help="apply this remedy wherever it has cause (repeatable): peel, smooth, prefix",
        metavar="NAME",
        rich_help_panel=RECIPE,
    ),
]
NoRemedy = Annotated[
    list[str] | None,
    typer.Option(
        "--no-remedy",
        help="leave this remedy out (repeatable): peel, smooth, prefix",
        metavar="NAME",
        rich_help_panel=RECIPE,
    ),
]
_ENDS = "auto (8-bit weights where measuring allows), 8bit (by block), as_is"
Head = Annotated[
    str | None,
    typer.Option(help=f"what lm_head becomes: {_ENDS}", metavar="HOW", show_default="auto", rich_help_panel=RECIPE),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        help=f"what the table of tokens becomes: {_ENDS}", metavar="HOW", show_default="auto", rich_help_panel=RECIPE
    ),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="MiB of weights in memory at a time; a larger model runs in pieces",
        metavar="MIB",
        show_default="64 to 256",
        rich_help_panel=WORK,
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        help="scheduler of a Dask cluster whose workers share the work, such as tcp://host:8786",
        metavar="ADDRESS",
        show_default="this machine alone",
        rich_help_panel=WORK,
    ),
]
MaxEvalTokens = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="evaluate on so many tokens at most",
        metavar="N",
        show_default="all of the text",
        rich_help_panel=DATA,
    ),
]
MaxLadderTokens = Annotated[
    int | None,
    typer.Option(
        "--max-eval-tokens",
        min=2,
        help="evaluate on so many tokens at most",
        metavar="N",
        show_default="65536 for small models to 4096 from 200 million weights on",
        rich_help_panel=DATA,
    ),
]
LadderBits = Annotated[
    list[int] | None,
    typer.Option(
        "--bits",
        help="4 to 8, repeatable; OUT holds the first",
        metavar="N",
        show_default="8; reference: 8 and 6",
        rich_help_panel=RECIPE,
    ),
]
Bits = Annotated[int | None, typer.Option(help="4 to 8", metavar="N", show_default="8", rich_help_panel=RECIPE)]
KnownRanges = Annotated[
    Path | None,
    typer.Option(
        "--ranges",
        help="what `calibrate` measured of this model; sites are then chosen by KL only with --calibration",
        metavar="FILE",
        show_default="measured",
        rich_help_panel=DATA,
    ),
]
Ladder = Annotated[
    str | None,
    typer.Option(
        help="full, or short: FP32, quantized everywhere, spike-aware and weights alone; no controls",
        metavar="EXTENT",
        show_default="full",
        rich_help_panel=WORK,
    ),
]
NoEval = Annotated[bool, typer.Option("--no-eval", help="no ladder", rich_help_panel=WORK)]
NoBench = Annotated[bool, typer.Option("--no-bench", help="speed is not timed", rich_help_panel=WORK)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, write nothing", rich_help_panel=WORK)]


SAMPLING = "How tokens are chosen"
GREEDY = "where the likeliest token is taken (--temperature 0)"
System = Annotated[
    str | None, typer.Option(help="what the model is told before a user speaks, by its chat template", metavar="TEXT")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="divides the logits; 0 takes the likeliest token",
        metavar="X",
        show_default="0; 1 if only --top-k or --top-p is given",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, help="sample from so many of the likeliest tokens", metavar="N", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="sample from the likeliest tokens that reach this probability",
        metavar="P",
        rich_help_panel=SAMPLING,
    ),
]
DrawSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=2**53, help="same seed, same text", metavar="N", show_default="0", rich_help_panel=SAMPLING
    ),
]


def sampling_of(temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None) -> Sampling:
    """How tokens are chosen, as the options say; it is told which of them do nothing."""
    from spq_graph.runtime.generation.sampling import Sampling

    if temperature is None:
        temperature = 0.0 if top_k is None and top_p is None else 1.0
    sampling = Sampling(temperature, top_k, top_p, seed or 0)
    if not sampling.temperature:
        unused(GREEDY, top_k=top_k, top_p=top_p, seed=seed)
    return sampling


def to_bytes(mebibytes: int | None) -> int | None:
    """What --memory-limit means, in bytes."""
    return mebibytes << 20 if mebibytes is not None else None
