#!/usr/bin/env python
"""Our forward pass, whole candidates and training beside PyTorch + transformers, on this machine's CPU.

    python scripts/bench_transformers.py [--model smollm2-135m] [--rounds 5] [--threads 2] [--only demonstrations]

Needs torch and transformers, which perturbjax itself never does; says so and exits with 2 where they are missing. What is measured:

prefill: 32 prompts of 96 tokens through the base, logits of the last tokens.
candidate: 32 prompts of 64 tokens and 32 greedy tokens each, from a perturbed copy of the weights. PyTorch adds seeded Gaussian noise to
    every weight in place, generates, and copies the base back (faster than drawing the noise again to subtract it, and exact). Ours makes
    the copy inside the compiled program, for each kind of noise.
training: a step of AdamW on all weights with 4 rows of 256 tokens, every next token learned, gradients clipped to norm 1. PyTorch's AdamW
    is its fused one.
product: the largest matrix product of that step's forward pass alone, in GFLOP/s, beside which the step's own rate can be judged: how many
    GFLOP it has in products with weights is printed above the table.
demonstrations: such a step on questions and answers of GSM8K, of which the answers are learned, with as many rows and tokens as a training
    has by default (8 x 512). Both see the same demonstrations. Ours are packed into rows, and get logits where a token is learned, as
    ``perturbjax ivl`` and all fine-tuning here do it; theirs are padded to the longest, with labels of -100 elsewhere, as transformers'
    collators do it.
in parts: the same, where PyTorch takes 8 demonstrations at a time, transformers' default, and adds up their gradients.

Both run float32; PyTorch with sdpa attention, a KV cache and, but for training, in inference mode. Neither stops early. Each has a process
of its own, because what one leaves in memory and in threads slows the other; they take turns, round by round, and printed are medians. Give
--threads as many as there are cores; XLA takes all of them.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from inputs import at_least, exit_code
from transformers_runs import (
    CANDIDATES,
    NOISES,
    PREFILL,
    PROMPT,
    ROWS,
    TRAINED,
    Batch,
    Runs,
    demonstrations,
    every_token,
    head_product,
    our_product,
    our_training,
    ours,
    theirs,
)

from perturbjax.pretrained import Model, load_model
from perturbjax.tree import leaf_paths


def inputs(options: argparse.Namespace) -> tuple[Model, np.ndarray, np.ndarray, dict[str, Batch]]:
    """The model, tokens of prefill and of prompts, and the batch of each training that is asked for: the same in both processes."""
    model = load_model(options.model)
    rng = np.random.default_rng(0)
    prefill, prompts = (rng.integers(100, model.config.vocab_size, (ROWS, width)) for width in (PREFILL, PROMPT))
    tokens = rng.integers(100, model.config.vocab_size, (TRAINED[0], TRAINED[1] + 1))
    make: dict[str, Callable[[], Batch]] = {"training": lambda: every_token(tokens), "demonstrations": lambda: demonstrations(model)}
    return model, prefill, prompts, {name: batch() for name, batch in make.items() if options.only in (None, name)}


def serve(connection: Connection, build: Callable[[argparse.Namespace], Runs], options: argparse.Namespace) -> None:
    """Runs by name, until None comes; sends what each gives and the seconds it took."""
    runs = build(options)
    while (name := connection.recv()) is not None:
        started = time.perf_counter()
        value = runs[name]()
        connection.send((value, time.perf_counter() - started))


def ours_alone(options: argparse.Namespace) -> Runs:
    model, prefill, prompts, trained = inputs(options)
    trainings = {name: our_training(model, batch) for name, batch in trained.items()}
    return ours(model, prefill, prompts) | {"product": our_product(model)} | trainings


def theirs_alone(options: argparse.Namespace) -> Runs:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(options.threads)
    return theirs(*inputs(options))


@contextlib.contextmanager
def process(build: Callable[[argparse.Namespace], Runs], options: argparse.Namespace) -> Iterator[Callable[[str], tuple[Any, float]]]:
    """A run by its name in a process of its own: what it gives, and its seconds."""
    mine, other = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(other, build, options), daemon=True)
    child.start()
    other.close()

    def run(name: str) -> tuple[Any, float]:
        mine.send(name)
        return mine.recv()

    yield run
    mine.send(None)
    child.join()


def show(what: str, rate: float, reference: float) -> None:
    print(f"{what:<24} {rate:>12.3f} {reference:>14.3f} {rate / reference:>7.2f}")


def compare(options: argparse.Namespace) -> None:
    asked = ("prefill", "candidate", "training", "demonstrations") if options.only is None else (options.only,)
    pairs = [(name, name) for name in asked if name != "candidate"] + [(name, "candidate") for name in NOISES if "candidate" in asked]
    pairs += [("demonstrations", "in parts")] if "demonstrations" in asked else []
    pairs += [("product", "product")] if "training" in asked else []
    # Before the processes start: a model that is not there is refused here.
    model, _, _, trained = inputs(options)
    with process(ours_alone, options) as mine, process(theirs_alone, options) as other:
        logits, expected = mine("prefill")[0], other("prefill")[0]
        print(f"largest difference of the logits: {np.abs(logits - expected).max() / np.abs(expected).max():.1e} of the largest logit")
        for name in trained:
            print(f"{name}: losses of the first step {mine(name)[0]:.5f} and {other(name)[0]:.5f}", flush=True)
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(options.rounds + 1):
            for side, run, names in (("ours", mine, sorted({n for n, _ in pairs})), ("torch", other, sorted({n for _, n in pairs}))):
                for name in names:
                    took = run(name)[1]
                    if number:  # the first round compiles
                        seconds.setdefault((side, name), []).append(took)
    counts = {"prefill": (ROWS * PREFILL, "tokens"), "training": (TRAINED[0] * TRAINED[1], "tokens")}
    if "demonstrations" in trained:
        counts["demonstrations"] = len(trained["demonstrations"].examples), "examples"
    hidden, head = head_product(model)
    counts["product"] = round(2e-9 * len(hidden) * head.size), "GFLOP"
    if "training" in trained:
        matrices = sum(leaf.size for path, leaf in leaf_paths(model.params).items() if path.endswith("kernel"))
        matrices += head.size * model.config.tied_head
        print(f"a step of training has {6e-9 * matrices * len(hidden):,.0f} GFLOP in products with weights")
    print(f"{'':<24} {'ours':>12} {'transformers':>14} {'ratio':>7}")
    for name, reference in pairs:
        count, unit = counts.get(name, (1, "cand."))
        ours, theirs = (statistics.median(seconds[side]) for side in (("ours", name), ("torch", reference)))
        what = reference if reference == "in parts" else name
        show(f"{what}, {unit}/s", (CANDIDATES if name in NOISES else count) / ours, count / theirs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--threads", type=at_least(1), default=os.cpu_count())
    parser.add_argument("--only", choices=("prefill", "candidate", "training", "demonstrations"), help="measure this alone")
    options = parser.parse_args()
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"{error.name} is not installed: this comparison needs torch and transformers", file=sys.stderr)
        return 2
    print(f"{options.model}, float32, {jax.default_backend()}, {options.threads} threads, medians of {options.rounds} rounds")
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    compare(options)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
