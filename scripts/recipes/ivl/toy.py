"""Inverse value learning on a language of two kinds of sentence: V carries a behavior, B carries knowledge.

    python scripts/recipes/ivl/toy.py --seeds 5

The language has facts, ``k1 k2 IS v`` with one value for each pair of keys, and questions, ``k1 k2 Q``, which a corpus mostly goes on from
with chatter (80 %) and sometimes with the fact's value (20 %). Two bases are trained on one corpus: A is too small for more than some of
the facts, B is large enough for all. 256 demonstrations then show that a question is answered, ``k1 k2 Q v``. A value network V learns
from them beside A alone, and is added to B, which has seen none of them.

Accuracy is the share of the other questions whose likeliest next token is the value: V cannot know these, and B does not say them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax import sharding
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.value import CONNECTIONS, Connection, ValueConfig, make_value
from perturbjax.models.attention import causal_mask
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.language_model import ModelConfig
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import MetricsLog
from perturbjax.train import Training
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.loop import fit
from perturbjax.train.problem import Problem
from perturbjax.train.rows import Rows
from perturbjax.train.step import Loss
from perturbjax.tree import fingerprint

PENALTY = 10.0
"""Weight of the norm. With the library's default of 1, an overtrained V learns these 256 demonstrations by heart all the same."""
PROMPT = 3
"""Tokens before the one that is learned: two keys, and IS or Q."""
EMBEDDING = 0.004
"""Size of random embeddings: so small that most of what the MLP reads are the keys, and IS and Q find one store of facts."""


@dataclass(frozen=True)
class Base:
    """A base and its training on the corpus: width of the model and of its MLP, in which facts lie, steps, highest learning rate."""

    width: int
    mlp: int
    steps: int
    rate: float


@dataclass(frozen=True)
class Toy:
    """Sizes of the experiment.

    Attributes:
        keys: of each kind; there are ``keys`` * ``keys`` facts.
        openings: tokens that chatter begins with. Each of them is likelier than the value, so no base answers unasked.
        answered: share of the questions of the corpus that go on with the value.
        small, large: A and B.
        batch, decay: sentences of a step of the bases, and their weight decay: without it B stores its facts once for IS and once for Q.
        steps, rate, tuned_rate: of V and of fine-tuning, on ``demonstration_batch`` demonstrations a step. Bases take a lower rate: at V's
            they learn the demonstrations by heart.
        overtrained: how many times as long an overtrained V is trained.
        gate: entropy of B in nats above which a gated V counts.
    """

    keys: int = 48
    values: int = 32
    openings: int = 2
    answered: float = 0.2
    demonstrations: int = 256
    small: Base = Base(16, 64, 450, 6e-3)
    large: Base = Base(64, 512, 700, 4e-3)
    batch: int = 256
    decay: float = 1.0
    steps: int = 200
    rate: float = 2e-3
    tuned_rate: float = 3e-4
    demonstration_batch: int = 32
    overtrained: int = 6
    gate: float = 0.5

    @property
    def vocabulary(self) -> int:
        return 2 * self.keys + 2 + self.openings + self.values

    @property
    def first_value(self) -> int:
        return self.vocabulary - self.values

    def decoder(self, base: Base) -> DecoderConfig:
        """One layer: it is enough to join two keys."""
        return DecoderConfig("toy", self.vocabulary, base.width, base.mlp, 1, 2, 2, base.width // 2, 1e4, 1e-5, False, max_positions=8)


def random_params(config: DecoderConfig, seed: int) -> dict[str, Any]:
    """Random parameters: matrices normal with 1 / sqrt(inputs), embeddings with ``EMBEDDING``."""
    rng = np.random.default_rng(seed)
    tree: dict[str, Any] = {}
    for path, shape in param_shapes(config).items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        size = EMBEDDING if name == "embedding" else shape[-2] ** -0.5 if len(shape) > 1 else 1.0
        node[name] = np.ones(shape, np.float32) if name == "scale" else rng.normal(0, size, shape).astype(np.float32)
    return tree


@dataclass(frozen=True)
class Language:
    """The facts of one seed: value tokens (keys, keys), and the pairs (N, 2) that are demonstrated and that are asked."""

    toy: Toy
    facts: np.ndarray
    shown: np.ndarray
    asked: np.ndarray

    @classmethod
    def draw(cls, toy: Toy, seed: int) -> "Language":
        rng = np.random.default_rng(seed)
        facts = rng.integers(0, toy.values, (toy.keys, toy.keys)) + toy.first_value
        pairs = rng.permutation(np.array(list(np.ndindex(facts.shape))))
        return cls(toy, facts, pairs[: toy.demonstrations], pairs[toy.demonstrations :])

    def answers(self, pairs: np.ndarray) -> np.ndarray:
        return self.facts[pairs[:, 0], pairs[:, 1]]

    def prompts(self, pairs: np.ndarray, question: np.ndarray | bool) -> np.ndarray:
        """Token ids (N, 3): the two keys, then Q or IS."""
        mark = np.broadcast_to(2 * self.toy.keys + np.asarray(question, int), len(pairs))
        return np.stack([pairs[:, 0], self.toy.keys + pairs[:, 1], mark], axis=1).astype(np.int32)

    def corpus(self, sentences: int, seed: int) -> Rows:
        """Sentences about all pairs, half of them facts and half of them questions."""
        toy, rng = self.toy, np.random.default_rng(seed)
        pairs = rng.integers(0, toy.keys, (sentences, 2))
        question = rng.random(sentences) < 0.5
        chatter = question & (rng.random(sentences) >= toy.answered)
        openings = rng.integers(0, toy.openings, sentences) + 2 * toy.keys + 2
        return rows_of(self.prompts(pairs, question), np.where(chatter, openings, self.answers(pairs)))

    def demonstrations(self) -> Rows:
        return rows_of(self.prompts(self.shown, True), self.answers(self.shown))


def rows_of(prompts: np.ndarray, labels: np.ndarray) -> Rows:
    """One sentence a row, whose last token is learned."""
    n = len(prompts)
    arrays = {
        "tokens": prompts,
        "positions": np.broadcast_to(np.arange(PROMPT, dtype=np.int32), (n, PROMPT)),
        "segments": np.zeros((n, PROMPT), np.int32),
        "query": np.full((n, 1), PROMPT - 1, np.int32),
        "labels": labels[:, None].astype(np.int32),
        "weights": np.ones((n, 1), np.float32),
    }
    return Rows(arrays, n, ())


@dataclass(frozen=True)
class Arm:
    """One way to make and train a value network; the defaults are the library's, but for the weight of the norm."""

    connection: Connection = "residual"
    init: str = "base"
    head: str = "zero"
    penalty: float = PENALTY
    overtrained: bool = False


MAIN, NO_NORM, WEIGHT_1 = "B + V", "B + V, no norm", "B + V, norm of weight 1"
LONG, LONG_NO_NORM = "B + V, 6 times as long", "B + V, 6 times as long, no norm"
LONG_WEIGHT_1 = "B + V, 6 times as long, norm of weight 1"
ARMS = {
    MAIN: Arm(),
    NO_NORM: Arm(penalty=0.0),
    WEIGHT_1: Arm(penalty=1.0),
    LONG: Arm(overtrained=True),
    LONG_NO_NORM: Arm(overtrained=True, penalty=0.0),
    LONG_WEIGHT_1: Arm(overtrained=True, penalty=1.0),
    **{f"B + V, {connection}": Arm(connection) for connection in CONNECTIONS if connection != "residual"},
    **{
        f"B + V, init {init}, head {head}": Arm(init=init, head=head)
        for init, head in (("base", "base"), ("scratch", "zero"), ("scratch", "base"))
    },
}
"""Row of the table -> value network. ``B + V`` is residual, init base, head zero, with the norm."""


class Experiment:
    """One seed: its language, its bases, and what is asked of them.

    Attributes:
        figures: row of the table -> accuracy on questions, accuracy on facts; both of pairs that were not demonstrated.
        checks: what must hold exactly -> whether it did.
    """

    def __init__(self, toy: Toy, seed: int):
        self.toy, self.seed, self.language = toy, seed, Language.draw(toy, seed)
        self.small, self.large = toy.decoder(toy.small), toy.decoder(toy.large)
        self.figures: dict[str, tuple[float, float]] = {}
        self.checks: dict[str, bool] = {}

    def run(self, arms: dict[str, Arm], on_row: Callable[[str, tuple[float, float]], None] = lambda name, figures: None) -> None:
        """Trains and measures everything; ``on_row`` hears of each row of the table."""

        def measure(name: str, config: ModelConfig, params: Any) -> None:
            self.figures[name] = self.accuracy(config, params, question=True), self.accuracy(config, params, question=False)
            on_row(name, self.figures[name])

        a, b = self.pretrained("small"), self.pretrained("large")
        before = fingerprint(b)
        measure("A", self.small, a)
        measure("B", self.large, b)
        a_tuned, b_tuned = self.tuned(self.small, a), self.tuned(self.large, b)
        measure("A fine-tuned", self.small, a_tuned)
        measure("B fine-tuned", self.large, b_tuned)
        proxy = CombinedConfig("proxy", self.large, (self.small, self.small))
        measure("B + A fine-tuned - A (proxy)", proxy, {"base": b, "tuned": a_tuned, "untuned": a})
        for name, arm in arms.items():
            value, params = self.value(arm, a)
            parts = {"base": b, "value": params}
            measure(name, CombinedConfig("value", self.large, (value,)), parts)
            if arm == Arm():
                measure("A + V", CombinedConfig("value", self.small, (value,)), {"base": a, "value": params})
                measure(f"B + V, gate {self.toy.gate}", CombinedConfig("value", self.large, (value,), gate=self.toy.gate), parts)
        for connection in CONNECTIONS:
            self.checks[f"V = 0 ({connection}) gives B's logits exactly"] = self.zero_is_base(connection, a, b)
        self.checks["B's parameters are the same bytes afterwards"] = fingerprint(b) == before

    def pretrained(self, which: Literal["small", "large"]) -> Any:
        toy, base, config = self.toy, getattr(self.toy, which), getattr(self, which)
        rows = self.language.corpus(base.steps * toy.batch, self.seed + 1)
        params = random_params(config, self.seed)
        return self._trained(params, fine_tuning_loss(config, jnp.float32), None, rows, base.steps, toy.batch, base.rate, toy.decay)

    def tuned(self, config: DecoderConfig, params: Any) -> Any:
        """All parameters of a base fine-tuned on the demonstrations."""
        return self._on_demonstrations(params, fine_tuning_loss(config, jnp.float32), None, self.toy.steps, self.toy.tuned_rate)

    def value(self, arm: Arm, a: Any) -> tuple[ValueConfig, Any]:
        """A value network trained on the demonstrations beside A."""
        value, start = make_value(self.small, a, arm.connection, from_base=arm.init == "base", zero_head=arm.head == "zero", seed=self.seed)
        steps = self.toy.steps * (self.toy.overtrained if arm.overtrained else 1)
        frozen = jax.tree.map(jnp.asarray, a)
        return value, self._on_demonstrations(start, value_loss(value, self.small, jnp.float32, arm.penalty), frozen, steps, self.toy.rate)

    def zero_is_base(self, connection: Connection, a: Any, b: Any) -> bool:
        value, params = make_value(self.small, a, connection)
        prompts = self.language.prompts(self.language.asked, True)
        joined = logits_of(CombinedConfig("value", self.large, (value,)), {"base": b, "value": params}, prompts)
        return bool(np.array_equal(joined, logits_of(self.large, b, prompts)))

    def accuracy(self, config: ModelConfig, params: Any, question: bool) -> float:
        """Share of the asked pairs whose likeliest next token after Q, or after IS, is the value."""
        asked = self.language.asked
        return float(np.mean(logits_of(config, params, self.language.prompts(asked, question)).argmax(-1) == self.language.answers(asked)))

    def _on_demonstrations(self, params: Any, loss: Loss, frozen: Any, steps: int, rate: float) -> Any:
        return self._trained(params, loss, frozen, self.language.demonstrations(), steps, self.toy.demonstration_batch, rate)

    def _trained(self, params: Any, loss: Loss, frozen: Any, rows: Rows, steps: int, batch: int, rate: float, decay: float = 0.0) -> Any:
        """Parameters after a training; its state lies in a temporary directory."""
        training = Training(
            steps=steps, batch_rows=batch, row_tokens=PROMPT, every=steps, learning_rate=rate, warmup=0.05, weight_decay=decay
        )
        with tempfile.TemporaryDirectory() as folder:
            metrics = MetricsLog(Path(folder) / "metrics.jsonl")
            problem = Problem(params, [(loss, frozen)], rows)
            found = fit(problem, training, self.seed, Path(folder) / "state", {"seed": self.seed}, sharding.make_mesh(), metrics)
        return jax.device_get(found.params)


def logits_of(config: ModelConfig, params: Any, prompts: np.ndarray) -> np.ndarray:
    """Logits of the token after each prompt: (N, V)."""
    return np.asarray(_forward(config)(params, prompts))


@lru_cache
def _forward(config: ModelConfig) -> Callable[[Any, Any], jax.Array]:
    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        model = config.build(params)
        positions = jnp.broadcast_to(jnp.arange(PROMPT), tokens.shape)
        hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
        return model.logits(jax.tree.map(lambda h: h[:, -1], hidden))

    return jax.jit(forward)


Figures = Mapping[str, Sequence[float]]
"""Row of the table -> accuracies on questions and on facts."""


def requirements(figures: Figures) -> list[tuple[str, float, float]]:
    """What must be reached on questions: name, value, the least that is required."""
    acc = {name: row[0] for name, row in figures.items()}
    return [
        ("acc(B + V) - acc(B)", acc[MAIN] - acc["B"], 0.5),
        ("acc(B + V) / acc(B fine-tuned)", acc[MAIN] / max(acc["B fine-tuned"], 1e-9), 0.9),
        ("acc(B + V) - acc(A + V)", acc[MAIN] - acc["A + V"], 0.5),
        ("6 times as long: norm - no norm", acc[LONG] - acc[LONG_NO_NORM], 0.15),
    ]


def report(seeds: Sequence[tuple[Figures, Mapping[str, bool]]]) -> bool:
    """Prints the table and the requirements of several seeds; whether all are met."""
    print(f"{'mean (lowest to highest) of ' + str(len(seeds)) + ' seeds':40} {'questions':>24} {'facts':>24}   B + V better by")
    for name in seeds[0][0]:
        rows = np.array([figures[name] for figures, _ in seeds])
        pairs = np.array([figures[MAIN][0] for figures, _ in seeds]) - rows[:, 0]
        print(f"{name:40} {_spread(rows[:, 0]):>24} {_spread(rows[:, 1]):>24} {_spread(pairs):>26}")
    met = True
    for number, (name, _, least) in enumerate(requirements(seeds[0][0])):
        values = np.array([requirements(figures)[number][1] for figures, _ in seeds])
        met &= values.mean() >= least
        print(f"{name:50} {_spread(values):>26}   {least} required: {'met' if values.mean() >= least else 'FAILED'}")
    for name in seeds[0][1]:
        held = all(checks[name] for _, checks in seeds)
        met &= held
        print(f"{name:50} {'holds' if held else 'FAILED'}")
    return bool(met)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--record", type=Path, help="a .jsonl file of finished seeds: those in it are not run again, new ones are added")
    args = parser.parse_args()
    if args.seeds < 1 or args.first < 0:
        parser.error(f"--seeds {args.seeds} --first {args.first}: at least one seed is required, and the first is at least 0")
    use_compile_cache("auto", Console())
    lines = args.record.read_text().splitlines() if args.record and args.record.exists() else []
    done = {line["seed"]: (line["figures"], line["checks"]) for line in map(json.loads, lines)}
    for seed in range(args.first, args.first + args.seeds):
        if seed in done:
            continue
        started, experiment = time.perf_counter(), Experiment(Toy(), seed)
        experiment.run(ARMS, lambda name, row: print(f"  {name:40} {row[0]:.3f} {row[1]:.3f}", flush=True))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s, {time.process_time():.0f} s of CPU since the start", flush=True)
        done[seed] = experiment.figures, experiment.checks
        if args.record:
            with args.record.open("a") as file:
                file.write(json.dumps({"seed": seed, "figures": experiment.figures, "checks": experiment.checks}) + "\n")
    return 0 if report([done[seed] for seed in range(args.first, args.first + args.seeds)]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
