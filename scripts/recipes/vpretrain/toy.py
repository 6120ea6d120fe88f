"""V-Pretraining on a language of two rules: feedback on a quarter of the contexts steers pretraining on all of them.

    python scripts/recipes/vpretrain/toy.py --seeds 6

Each of 512 contexts goes on with the token of the target rule (40 %, tokens 0 to 31) or with that of the distractor rule (60 %, tokens 32
to 63). Feedback shows the target rule on a quarter of the contexts. Every arm trains the same learner on the same batches for the same
steps; figures are the loss and the accuracy of the target rule's tokens in the other three quarters, which no arm has feedback for.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax import sharding
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import MetricsLog
from perturbjax.train import Training
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import learning_rates
from perturbjax.train.problem import Fitted
from perturbjax.train.rows import Rows
from perturbjax.tree import nest
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.config import Mode, Similarity
from perturbjax.vpretrain.designer import TopKDesigner
from perturbjax.vpretrain.results import correlation, probe_pairs
from perturbjax.vpretrain.steering import Steering
from perturbjax.vpretrain.text import Learner, TextTask
from perturbjax.vpretrain.value import make_subset


@dataclass(frozen=True)
class Toy:
    """Sizes of the experiment.

    Attributes:
        contexts: a token each, after those of the rules.
        tokens: of each rule.
        target: share of the corpus that follows the target rule.
        shown: share of the contexts that have feedback.
        width, layers: of the learner; its value is looked at in the last layer.
        steps, batch, rate: of the learner.
        designer_width, designer_rate: of the designer.
        every, candidates, alpha_max: the meta period, K, the cap of alpha.
        feedback_rows: contexts of a batch of feedback.
    """

    contexts: int = 512
    tokens: int = 32
    target: float = 0.4
    shown: float = 0.25
    width: int = 64
    layers: int = 2
    steps: int = 600
    batch: int = 128
    rate: float = 1e-2
    designer_width: int = 32
    designer_rate: float = 3e-3
    every: int = 4
    candidates: int = 8
    alpha_max: float = 0.5
    feedback_rows: int = 64

    @property
    def vocabulary(self) -> int:
        return 2 * self.tokens + self.contexts

    @property
    def learner(self) -> Learner:
        width = self.width
        config = DecoderConfig("toy", self.vocabulary, width, 2 * width, self.layers, 2, 2, width // 2, 1e4, 1e-5, False, max_positions=8)
        return Learner(config, jnp.float32)


@dataclass(frozen=True)
class Arm:
    """A row of the table: a mode, the similarity of the value, whether the designer sees log-probabilities."""

    mode: Mode
    similarity: Similarity = "dot"
    sees_log_probs: bool = True


PLAIN, VALUE = "plain", "value"
ARMS = {
    PLAIN: Arm("plain"),
    VALUE: Arm("value"),
    "random direction": Arm("random"),
    "uniform": Arm("uniform"),
    "self-distillation": Arm("self"),
    "value (cosine)": Arm("value", "cosine"),
    "value (preconditioned)": Arm("value", "preconditioned"),
    "value (no log-probabilities)": Arm("value", sees_log_probs=False),
    "oracle target": Arm("oracle"),
    "fine-tuning on the feedback": Arm("fine_tuning"),
}


@dataclass(frozen=True)
class Language:
    """The rules of one seed, each context's token by both, and the contexts with feedback and without."""

    toy: Toy
    target: np.ndarray
    distractor: np.ndarray
    shown: np.ndarray
    asked: np.ndarray

    @classmethod
    def draw(cls, toy: Toy, seed: int) -> "Language":
        rng = np.random.default_rng(seed)
        target, distractor = (rng.integers(0, toy.tokens, toy.contexts) + offset for offset in (0, toy.tokens))
        order = rng.permutation(toy.contexts)
        shown = round(toy.shown * toy.contexts)
        return cls(toy, target, distractor, order[:shown], order[shown:])

    def corpus(self, seed: int) -> Rows:
        """As many rows as the steps read."""
        toy, rng = self.toy, np.random.default_rng(seed)
        contexts = rng.integers(0, toy.contexts, toy.steps * toy.batch)
        follows = rng.random(len(contexts)) < toy.target
        return self.rows(contexts, np.where(follows, self.target[contexts], self.distractor[contexts]))

    def rows(self, contexts: np.ndarray, labels: np.ndarray | None = None) -> Rows:
        """One context a row, and the token that is learned after it: the target rule's when left out."""
        n = len(contexts)
        labels = self.target[contexts] if labels is None else labels
        arrays = {
            "tokens": (contexts[:, None] + 2 * self.toy.tokens).astype(np.int32),
            **{name: np.zeros((n, 1), np.int32) for name in ("positions", "segments", "query")},
            "labels": labels[:, None].astype(np.int32),
            "weights": np.ones((n, 1), np.float32),
        }
        return Rows(arrays, n, ())


def random_params(config: DecoderConfig, seed: int) -> Any:
    """Matrices normal with 1 / sqrt(inputs), embeddings with 1."""
    rng = np.random.default_rng(seed)

    def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("scale"):
            return np.ones(shape, np.float32)
        return rng.normal(0, 1 if path.endswith("embedding") else shape[-2] ** -0.5, shape).astype(np.float32)

    return nest({path: one(path, shape) for path, shape in param_shapes(config).items()})


@dataclass(frozen=True)
class Row:
    """One arm of one seed: loss and accuracy where there was no feedback, the probe's r with momentum and of the value alone, alpha at the
    end, seconds of steps."""

    loss: float
    accuracy: float
    r: float | None
    r_alone: float | None
    alpha: float
    seconds: float


def run_arm(toy: Toy, arm: Arm, seed: int) -> tuple[Row, Fitted]:
    """Trains one arm; its state lies in a temporary directory."""
    language, learner = Language.draw(toy, seed), toy.learner
    params = random_params(learner.config, seed)
    designer = TopKDesigner(toy.vocabulary, toy.candidates, toy.designer_width, 1, 2, toy.alpha_max, sees_log_probs=arm.sees_log_probs)
    task = TextTask(learner, designer, make_subset(params, 1), {"target": 1.0})
    steering = Steering(arm.similarity, every=toy.every, learning_rate=toy.designer_rate, seed=seed)
    training = Training(
        steps=toy.steps, batch_rows=toy.batch, row_tokens=1, every=toy.steps, learning_rate=toy.rate, warmup=0.05, weight_decay=0.0
    )
    feedback, rate = {"target": language.rows(language.shown)}, learning_rates(training, toy.steps)
    asked = language.rows(language.asked)
    experiment = Experiment(
        task,
        params,
        None,
        designer.init(seed),
        steering,
        language.corpus(seed + 1),
        feedback,
        toy.feedback_rows,
        rate,
        {"asked": asked},
        {},
    )
    with tempfile.TemporaryDirectory() as folder:
        place, metrics = Path(folder), MetricsLog(Path(folder) / "metrics.jsonl")
        problem = experiment.problem(arm.mode)
        fitted = fit(problem, training, seed, place / "state", {"seed": seed}, sharding.make_mesh(), metrics)
    look = fitted.looks[-1]
    accuracy = accuracy_of(learner, fitted.params, asked)
    r, alone = (correlation(probe_pairs(fitted.looks, name)) for name in ("predicted", "predicted_alone"))
    return Row(look.validation["asked"], accuracy, r, alone, look.losses.get("alpha", 0.0), look.seconds), fitted


def accuracy_of(learner: Learner, params: Any, rows: Rows) -> float:
    """Share of the rows whose likeliest next token is the label."""

    @jax.jit
    def likeliest(params: Any, tokens: jax.Array) -> jax.Array:
        decoder = learner.build(params, None)
        hidden, _ = decoder(tokens, jnp.zeros_like(tokens), jnp.ones((*tokens.shape, 1), bool))
        return decoder.logits(hidden[:, 0]).argmax(-1)

    return float(np.mean(np.asarray(likeliest(params, rows.arrays["tokens"])) == rows.arrays["labels"][:, 0]))


Seed = Mapping[str, Row]


def requirements(seeds: Sequence[Seed]) -> list[tuple[str, float, bool]]:
    """What must be reached: name, value, whether it is."""

    def mean(name: str, field: str) -> float:
        return float(np.mean([getattr(seed[name], field) for seed in seeds]))

    gains = [seed[PLAIN].loss - seed[VALUE].loss for seed in seeds]
    found = [("plain - value, nats: 0.10 or more", float(np.mean(gains)), float(np.mean(gains)) >= 0.10)]
    found.append((f"seeds with plain - value > 0: all {len(seeds)}", sum(g > 0 for g in gains), min(gains) > 0))
    gain = mean(VALUE, "accuracy") - mean(PLAIN, "accuracy")
    found.append(("accuracy gained: 0.2 or more", gain, gain >= 0.2))
    for name in ("random direction", "uniform", "self-distillation"):
        better = mean(PLAIN, "loss") - mean(name, "loss")
        found.append((f"plain - {name}, nats: 0.02 or less", better, better <= 0.02))
    r = float(np.mean([seed[VALUE].r or 0.0 for seed in seeds]))
    return [*found, ("r of predicted and realized: 0.6 or more", r, r >= 0.6)]


def report(seeds: Sequence[Seed]) -> bool:
    """Prints the table and the requirements; whether all are met. Intervals are 95 %, Student's t over seeds."""
    from scipy import stats

    def spread(values: Sequence[float]) -> str:
        table = np.asarray(values, float)
        half = stats.t.ppf(0.975, len(table) - 1) * table.std(ddof=1) / len(table) ** 0.5 if len(table) > 1 else float("nan")
        return f"{table.mean():7.3f} ± {half:.3f}"

    print(f"{len(seeds)} seeds, mean ± half of the 95 % interval")
    print(
        f"{'':30} {'loss':>16} {'plain - it':>16} {'wins':>6} {'accuracy':>16} {'r':>16} {'r, value alone':>16} {'alpha':>7} {'seconds':>8}"
    )
    for name in seeds[0]:
        rows = [seed[name] for seed in seeds]
        gains = [seed[PLAIN].loss - seed[name].loss for seed in seeds]
        r, alone = ([found for row in rows if (found := getattr(row, name)) is not None] for name in ("r", "r_alone"))
        line = f"{name:30} {spread([row.loss for row in rows]):>16} {spread(gains):>16} {sum(g > 0 for g in gains):>3}/{len(rows)}"
        line += f" {spread([row.accuracy for row in rows]):>17} {spread(r) if r else '':>16} {spread(alone) if alone else '':>16}"
        print(line + f" {np.mean([row.alpha for row in rows]):7.3f} {np.mean([row.seconds for row in rows]):8.1f}")
    found = requirements(seeds)
    for name, value, met in found:
        print(f"{name:50} {value:8.3f}   {'met' if met else 'FAILED'}")
    return all(met for _, _, met in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=6, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--arms", help="names of arms, comma separated; all when left out, the first five are needed for the requirements")
    parser.add_argument("--record", type=Path, help="a .jsonl file of finished arms: those in it are not run again, new ones are added")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another size of the toy")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1 is required")
    if unknown := [arm for arm in (args.arms.split(",") if args.arms else []) if arm not in ARMS]:
        parser.error(f"--arms {unknown[0]}: one of {', '.join(ARMS)} is required")
    try:
        toy = replace(Toy(), **{name: json.loads(value) for name, value in (each.split("=") for each in args.set)})
    except (TypeError, ValueError) as error:
        parser.error(f"--set {' '.join(args.set)}: NAME=VALUE is required, of {', '.join(vars(Toy()))} ({error})")
    use_compile_cache("auto", Console())
    arms = {name: ARMS[name] for name in (args.arms.split(",") if args.arms else ARMS)}
    lines = args.record.read_text().splitlines() if args.record and args.record.exists() else []
    done = {(line["seed"], line["arm"]): Row(**line["row"]) for line in map(json.loads, lines)}
    for name, arm in arms.items():
        for seed in range(args.first, args.first + args.seeds):
            if (seed, name) in done:
                continue
            started = time.perf_counter()
            row, _ = run_arm(toy, arm, seed)
            done[seed, name] = row
            print(f"  {name:30} seed {seed}: {row}, {time.perf_counter() - started:.0f} s", flush=True)
            if args.record:
                with args.record.open("a") as file:
                    file.write(json.dumps({"seed": seed, "arm": name, "row": vars(row)}) + "\n")
    seeds = [{name: done[seed, name] for name in arms} for seed in range(args.first, args.first + args.seeds)]
    needed = list(ARMS)[:5]
    if any(name not in arms for name in needed):
        return 0
    return 0 if report(seeds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
