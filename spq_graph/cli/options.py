"""The options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spq_graph.terms.precision import SMALLEST_FIRST
from spq_graph.terms.targets import PROFILES

MODEL_HELP = "Hugging Face folder, .gguf or .onnx file, or the word 'reference' (the embedded model)"

Source = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="SOURCE")]
AnyModel = Annotated[
    str, typer.Argument(help="an .onnx or .gguf file, an OUT folder or a Hugging Face folder", metavar="PATH")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="folder to write", metavar="OUT")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Force = Annotated[bool, typer.Option("--force", help="replace an existing OUT of ours")]
Tokenizer = Annotated[Path | None, typer.Option(help="folder with tokenizer.json, for an .onnx file", metavar="DIR")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="recipe in TOML", metavar="FILE")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="calibration data: text, JSON, JSON lines, or .npz of input_ids; default: text sampled "
        "from the model itself",
        metavar="FILE",
    ),
]
CalibrationTokens = Annotated[int | None, typer.Option(min=1, help="tokens of calibration data (default 65536)")]
Text = Annotated[Path | None, typer.Option(help="evaluation text, never the calibration data", metavar="FILE")]
Bos = Annotated[bool, typer.Option("--bos", help="prepend BOS even where the tokenizer does not")]
Window = Annotated[int | None, typer.Option(min=2, help="tokens in a sequence (default: the model's, at most 2048)")]
*_SOME, _LAST = PROFILES
Target = Annotated[str | None, typer.Option(help=f"{', '.join(_SOME)} or {_LAST}")]
HighPrecision = Annotated[
    str | None,
    typer.Option(
        help="what kept sites become: auto (what measuring justifies), fp8 (of its two formats the better), "
        + ", ".join(p for p in SMALLEST_FIRST if p.bits is None)
    ),
]
Keep = Annotated[
    list[str] | None, typer.Option(help="keep these sites in high precision by hand (glob, repeatable)", metavar="GLOB")
]
SpikeRatio = Annotated[
    float | None, typer.Option(help="keep every site above this max/median ratio, without any evaluation")
]
QuantizeLmHead = Annotated[bool, typer.Option("--quantize-lm-head", help="treat lm_head like any other site")]
Remedy = Annotated[
    list[str] | None,
    typer.Option("--remedy", help="apply this remedy wherever it has cause (repeatable): peel", metavar="NAME"),
]
NoRemedy = Annotated[
    list[str] | None, typer.Option("--no-remedy", help="leave this remedy out (repeatable): peel", metavar="NAME")
]
_ENDS = "auto (8-bit weights by block where measuring allows), 8bit, as_is"
Head = Annotated[str | None, typer.Option(help=f"what lm_head becomes: {_ENDS}")]
Embedding = Annotated[str | None, typer.Option(help=f"what the table of tokens becomes: {_ENDS}")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**53, help="seed of what is sampled and of random controls")]
AllowNoGlu = Annotated[bool, typer.Option("--allow-no-glu", help="go on where the graph holds no GLU")]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="MiB of weights in memory at a time; a larger model runs in pieces (default 64 to 256)",
        metavar="MIB",
    ),
]
MaxEvalTokens = Annotated[int | None, typer.Option(min=2, help="evaluate on so many tokens at most (default: all)")]
MaxLadderTokens = Annotated[
    int | None,
    typer.Option(
        "--max-eval-tokens",
        min=2,
        help="evaluate on so many tokens at most (default: 65536 for small models to 4096 from 200 million weights on)",
    ),
]
LadderBits = Annotated[list[int] | None, typer.Option("--bits", help="4 to 8, repeatable; OUT holds the first")]
Bits = Annotated[int | None, typer.Option(help="4 to 8")]
KnownRanges = Annotated[
    Path | None,
    typer.Option(
        "--ranges",
        help="what `calibrate` measured of this model; sites are then chosen by KL only with --calibration",
        metavar="FILE",
    ),
]
Ladder = Annotated[
    str | None,
    typer.Option(
        help="full (the default), or short: FP32, quantized everywhere, spike-aware and weights alone; no controls"
    ),
]
NoEval = Annotated[bool, typer.Option("--no-eval", help="no ladder")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, write nothing")]


def to_bytes(mebibytes: int | None) -> int | None:
    """What --memory-limit means, in bytes."""
    return mebibytes << 20 if mebibytes is not None else None
