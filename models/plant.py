"""Plants function-preserving BOS spikes of a chosen size, for tests that need a known answer.

A planted spike is always called planted: it is not what training made of a model. One neuron is added to the FFN of a
layer. Its gate fires on the state of BOS at position 0, which causal attention makes the same in every sequence, and
its column in `down_proj` is zero: the model computes what it did before, while the input of `down_proj` has a value
there that stretches every scale taken from it. A BOS that comes again within a text may fire too, or may not.

    python -m spq_graph.models.plant FOLDER -o OUT --layers 1,3 --ratio 150
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spq_graph.documents.json_text import json_text
from spq_graph.models.chatter import quiet
from spq_graph.models.loading import load_causal_lm
from spq_graph.models.sample import start_token
from spq_graph.models.states import capture, corpus, half_space, least_response, token_maxima
from spq_graph.terms.errors import OutputError, SourceError, SpqError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# silu(-60) is 5e-25: nothing, in float32 beside anything.
_CLOSED: Final = 60.0
# Neurons come in eights, as kernels like them.
_MULTIPLE: Final = 8
_PROJECTIONS: Final = ("gate_proj", "up_proj", "down_proj")
_NOT_COPIED: Final = ("*.safetensors", "*.bin", "*.index.json", "config.json", "*.onnx*", "planted.json")


@dataclass(frozen=True)
class PlantedSpike:
    """One planted spike, as measured on text sampled from the planted model.

    Attributes:
        layer: index of the layer.
        neuron: channel of the `down_proj` input.
        token: the BOS id, at position 0.
        asked: ratio asked for.
        ratio: largest token maximum over the median one, at the `down_proj` input.
        value: value of the planted neuron on BOS.
        median: median token maximum.
        elsewhere: largest absolute value of the planted neuron on any other token, noise included.
    """

    layer: int
    neuron: int
    token: int
    asked: float
    ratio: float
    value: float
    median: float
    elsewhere: float


def plant_bos_spikes(
    folder: Path,
    out: Path,
    *,
    layers: Sequence[int],
    ratio: float,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[PlantedSpike]:
    """Writes a copy of the model in `folder` that has a planted BOS spike in each of `layers`.

    Args:
        folder: a LLaMA-like Hugging Face folder; it is only read.
        out: folder to write: float32 safetensors, config, what else the source holds, and `planted.json`.
        layers: layers to plant in; every layer is widened, since all share one intermediate size.
        ratio: largest token maximum over the median token maximum at the `down_proj` input of these layers.
        seed: of the text that the planting looks at.
        progress: is told what begins.

    Returns:
        The planted spikes in the order of `layers`.

    Raises:
        SourceError: the folder cannot be loaded or is not LLaMA-like, or a layer's BOS state cannot be told apart.
        UsageError: a layer does not exist or comes twice, or the model has a larger ratio there by nature.
        OutputError: `out` exists.
    """
    report = progress or (lambda _: None)
    if out.exists():
        raise OutputError("the folder to write exists", where=str(out), remedy="Name one that does not.")
    model = load_causal_lm(folder)
    _check_layers(model, folder, layers)
    report("sampling text")
    token = start_token(model.config)
    text, noise = corpus(model, token, seed)
    report("looking at BOS and at everything else")
    states = capture(
        model, [f"model.layers.{layer}.mlp" for layer in layers], [text, *noise], lambda hidden: hidden.double()
    )
    before = token_maxima(model, layers, text)
    neuron = _widen(model)
    for layer, state, maxima in zip(layers, states, before, strict=True):
        report(f"planting in layer {layer}")
        natural = float(maxima.max() / maxima.median())
        if natural >= ratio:
            raise UsageError(
                f"its ratio is {natural:.0f} by nature, not below {ratio:g}",
                where=f"layer {layer}",
                remedy="Ask for a larger one.",
            )
        _plant(_mlp(model, layer), neuron, state, ratio * float(maxima.median()), layer)
    report("measuring")
    spikes = _measure(model, layers, neuron, token, ratio, text, noise)
    _write(model, folder, out, spikes, seed)
    return spikes


def _mlp(model: PreTrainedModel, layer: int) -> Any:
    return model.get_submodule(f"model.layers.{layer}.mlp")


def _check_layers(model: PreTrainedModel, folder: Path, layers: Sequence[int]) -> None:
    names = dict(model.named_parameters())
    depth = int(model.config.num_hidden_layers)
    for layer in range(depth):
        for projection in _PROJECTIONS:
            name = f"model.layers.{layer}.mlp.{projection}.weight"
            if name not in names:
                raise SourceError(
                    f"not LLaMA-like: it has no {name}",
                    where=str(folder),
                    remedy="Spikes are planted in models with separate gate, up and down projections.",
                )
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < depth for layer in layers):
        raise UsageError(
            f"layers {list(layers)} cannot be planted in",
            where=str(folder),
            remedy=f"Name each layer once, from 0 to {depth - 1}.",
        )


def _widen(model: PreTrainedModel) -> int:
    """Adds zero neurons to every layer, which changes nothing, and returns the index of the first new one."""
    import torch
    from torch.nn.functional import pad

    old = int(model.config.intermediate_size)
    new = (old // _MULTIPLE + 1) * _MULTIPLE
    for layer in range(int(model.config.num_hidden_layers)):
        mlp = _mlp(model, layer)
        for name in ("gate_proj", "up_proj"):
            linear = getattr(mlp, name)
            linear.weight = torch.nn.Parameter(pad(linear.weight, (0, 0, 0, new - old)), requires_grad=False)
            if linear.bias is not None:
                linear.bias = torch.nn.Parameter(pad(linear.bias, (0, new - old)), requires_grad=False)
            linear.out_features = new
        down = mlp.down_proj
        down.weight = torch.nn.Parameter(pad(down.weight, (0, new - old)), requires_grad=False)
        down.in_features = new
    model.config.intermediate_size = new
    return old


def _plant(mlp: Any, neuron: int, states: Tensor, value: float, layer: int) -> None:
    """Makes one neuron give `value` on the first of `states` and, as far as can be, 0 on the others."""
    import torch

    bos, others = states[0], states[1:]
    up = least_response(bos, others)
    gate = half_space(bos, others, up)
    margin = -float((others @ gate).max())
    if margin <= 0:
        raise SourceError(
            "the state of BOS cannot be told from that of other tokens",
            where=f"layer {layer}",
            remedy="Plant in another layer, or in a wider or a trained model.",
        )
    gate = gate * (_CLOSED / margin)
    opened = mlp.act_fn(gate @ bos)
    with torch.no_grad():
        mlp.gate_proj.weight[neuron] = gate.to(mlp.gate_proj.weight)
        mlp.up_proj.weight[neuron] = (up * (value / opened)).to(mlp.up_proj.weight)


def _measure(
    model: PreTrainedModel,
    layers: Sequence[int],
    neuron: int,
    token: int,
    asked: float,
    text: Tensor,
    noise: Sequence[Tensor],
) -> list[PlantedSpike]:
    names = [f"model.layers.{layer}.mlp.down_proj" for layer in layers]
    planted = capture(model, names, [text, *noise], lambda values: values[..., neuron, None])
    spikes = []
    for layer, fired, maxima in zip(layers, planted, token_maxima(model, layers, text), strict=True):
        median = float(maxima.median())
        spikes.append(
            PlantedSpike(
                layer=layer,
                neuron=neuron,
                token=token,
                asked=asked,
                ratio=float(maxima.max()) / median,
                value=float(fired[0]),
                median=median,
                elsewhere=float(fired[1:].abs().max()),
            )
        )
    return spikes


def _write(model: PreTrainedModel, folder: Path, out: Path, spikes: Sequence[PlantedSpike], seed: int) -> None:
    with quiet():
        model.save_pretrained(out)
    skipped = shutil.ignore_patterns(*_NOT_COPIED)(str(folder), [path.name for path in folder.iterdir()])
    for path in folder.iterdir():
        if path.is_file() and path.name not in skipped:
            shutil.copyfile(path, out / path.name)
    record = {
        "description": "BOS spikes planted by spq-graph: extra FFN neurons that nothing reads. Not natural.",
        "seed": seed,
        "spikes": [asdict(spike) for spike in spikes],
    }
    (out / "planted.json").write_text(json_text(record, "planted.json", ascii_only=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m spq_graph.models.plant", description="Plant function-preserving BOS spikes in a LLaMA folder."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--layers", required=True, type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--ratio", required=True, type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        spikes = plant_bos_spikes(
            options.folder,
            options.out,
            layers=options.layers,
            ratio=options.ratio,
            seed=options.seed,
            progress=lambda step: print(step, file=sys.stderr),
        )
    except SpqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for spike in spikes:
        print(f"layer {spike.layer}: planted {spike.value:.1f}, median {spike.median:.2f}, ratio {spike.ratio:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
