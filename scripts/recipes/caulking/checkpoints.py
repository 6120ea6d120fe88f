"""Small decoders by how long they were pretrained: how many examples of a new task LoRA, or all parameters, need.

    .venv/bin/python scripts/recipes/caulking/checkpoints.py --out /tmp/checkpoints --plot /tmp/checkpoints.png

A decoder of 0.2 M parameters is pretrained on HellaSwag's stories for m steps of 4,096 tokens, m = 25, 100 and 400, from the same random
start. The target is another kind of text: to ask a question about a passage (BoolQ). An example is a passage's beginning and one question;
the error is the cross-entropy of the question's tokens, in nats, on other passages. Examples are counted for the error that LoRA
reaches from the longest pretraining with ``LEVEL_SAMPLES`` of them. Seeds draw the examples; the pretraining is one.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "ivl"))

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import NullLocator
from questions import AskAbout, Passages
from small_models import ROW, Size, byte_level, pretrained, random_model, running_text, stories

from perturbjax.caulking import Fitting, Measured, Method, run_grid
from perturbjax.caulking.complexity import source_slope, surfaces
from perturbjax.caulking.surface_table import required_lines, surface_lines
from perturbjax.models.adapters import LoRA, full, of_decoder
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.report.figure import BLUE, GREY, VERMILLION, label_right, new_figure, save
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.train.demonstrations import encode_demonstrations, task_demonstrations
from perturbjax.train.rows import at_queries, pack_rows, segment_mask
from perturbjax.train.step import cross_entropy
from perturbjax.tree import nest, path_hash

SIZE, VOCABULARY, RATE = Size(64, 176, 2), 2048, 3e-3
STEPS, SAMPLES, LEVEL_SAMPLES = (25, 100, 400), (8, 32, 128, 512), 32
TOKENS, TEST, HELD = 96, 128, 64
"""Tokens of an example at most; examples of the test; rows of stories that measure the pretraining."""
FITTING = Fitting(steps=200, batch=8)


def one_a_row(task: AskAbout, tokenizer: Tokenizer, count: int) -> dict[str, np.ndarray]:
    """The first ``count`` examples that fit, each a row of its own."""
    found = encode_demonstrations(task_demonstrations(task), tokenizer)
    fitting = [each for each in found if len(each.prompt) + len(each.response) - 1 <= TOKENS][:count]
    rows = [pack_rows([each], TOKENS).arrays for each in fitting]
    if len(rows) < count:
        raise ValueError(f"{len(rows)} of {len(found)} examples have at most {TOKENS} tokens; {count} are required")

    def padded(name: str) -> np.ndarray:
        width = max(row[name].shape[1] for row in rows)
        return np.concatenate([np.pad(row[name], ((0, 0), (0, width - row[name].shape[1]))) for row in rows])

    return {name: padded(name) for name in rows[0]}


def nats(config: DecoderConfig):
    """(params, rows) -> mean cross-entropy of the learned tokens, ()."""

    def fn(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        decoder = config.build(params)
        hidden, _ = decoder(batch["tokens"], batch["positions"], segment_mask(batch["segments"]))
        losses = cross_entropy(decoder.logits(at_queries(hidden, batch["query"])), batch["labels"])
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    return fn


def random_params(config: DecoderConfig):
    """key -> random parameters: normal with 0.02, scales of norms 1."""

    def one(key: jax.Array, path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith("/scale"):
            return jnp.ones(shape)
        return 0.02 * jax.random.normal(jax.random.fold_in(key, path_hash(path)), shape)

    return lambda key: nest({path: one(key, path, shape) for path, shape in param_shapes(config).items()})


def report(cells: Sequence[Measured], source: Mapping[float, Sequence[float]]) -> float:
    """Prints surfaces and numbers of examples; the level that they are counted for."""
    table = surfaces(cells)
    for name, surface in table.items():
        print("\n".join(surface_lines(f"{name}: nats a token on the target", surface, source)))
    lora = table["lora"]
    level = float(lora.mean[lora.qualities.index(float(STEPS[-1])), lora.samples.index(LEVEL_SAMPLES)])
    print(f"examples for {level:.3f} nats, 95 % intervals over seeds")
    for name, surface in table.items():
        print("\n".join(required_lines(name, surface.required(level))))
        if None not in surface.qualities and sum(each.censored == "no" for each in surface.required(level).values()) > 1:
            value, (low, high), used = source_slope(surface, source, level)
            print(f"{name:8} slope of log n_req against log source error {value:.2f} [{low:.2f}, {high:.2f}], {used} of {len(source)} m")
    return level


def plot(path: Path, cells: Sequence[Measured], level: float) -> None:
    """Nats against n: a color a method, the shortest pretraining dotted, the longest solid."""
    figure, (axis,) = new_figure(4.4)
    axis.set_xscale("log", base=2)
    labels = []
    for (name, surface), color in zip(surfaces(cells).items(), (BLUE, VERMILLION, GREY), strict=True):
        for row, m in enumerate(surface.qualities):
            style = "o-" if row == len(surface.qualities) - 1 else "o--" if row else "o:"
            low, high = surface.interval()[row].T
            axis.fill_between(surface.samples, low, high, color=color, alpha=0.12, linewidth=0)
            axis.plot(surface.samples, surface.mean[row], style, color=color, markersize=4.5, linewidth=1.8)
            labels.append((surface.mean[row][-1], name if m is None else f"{name}, m = {m:.0f}", color))
    axis.axhline(level, color="#bbbbbb", linewidth=1.0, linestyle=":", zorder=0)
    axis.set_xticks(surface.samples, [str(n) for n in surface.samples])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("examples of the target, n")
    axis.set_ylabel("nats a token")
    label_right(axis, labels)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pretrainings and the cells; continued when it is there")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: at least 2 are required, or there are no intervals")
    console = Console()
    use_compile_cache("auto", console)
    every = stories()
    held, texts = every[: len(every) // 20], every[len(every) // 20 :]
    passages = Passages.draw(2 * max(SAMPLES), 1, 2 * TEST, seed=0)
    tokenizer = byte_level([*texts, *passages.text], VOCABULARY)
    start = random_model("small", SIZE, tokenizer, 0)
    config = start.config
    assert isinstance(config, DecoderConfig)
    error, held_rows = nats(config), running_text(held, tokenizer, 0, ROW)
    bases = {
        float(m): pretrained(start, texts, m, RATE, 0, args.out / f"pretraining-{m}", lambda line: print(line, flush=True)).params
        for m in STEPS
    }
    on_stories = {m: float(jax.jit(error)(base, held_rows.batch(np.arange(HELD)))) for m, base in bases.items()}
    methods = {
        "lora": Method(LoRA(4, 8.0, of_decoder(config)), learning_rate=3e-3, attach=True),
        "full": Method(full(), learning_rate=1e-3),
        "scratch": Method(None, learning_rate=RATE),
    }
    cells = run_grid(
        error, error, bases, methods, one_a_row(passages.shown, tokenizer, max(SAMPLES)), one_a_row(passages.test, tokenizer, TEST),
        SAMPLES, args.seeds, FITTING, init=random_params(config), out=args.out / "cells", progress=console,
    )  # fmt: skip
    for m, base in bases.items():
        alone = float(jax.jit(error)(base, one_a_row(passages.test, tokenizer, TEST)))
        print(f"m = {m:.0f}: {on_stories[m]:.3f} nats on held-out stories, {alone:.3f} on the target before any example")
    level = report(cells, {m: [value] * args.seeds for m, value in on_stories.items()})
    if args.plot:
        plot(args.plot, cells, level)


if __name__ == "__main__":
    main()
