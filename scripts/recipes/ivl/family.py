"""Inverse value learning in a family of models that are pretrained here, on real text.

    python scripts/recipes/ivl/family.py --out /tmp/family

Three sizes of decoder, A < B < C, are trained on HellaSwag's stories, and B is trained further on passages of an encyclopedia (BoolQ's). A
value network V learns beside A alone to ask a question about a passage, from BoolQ's questions, and is added to all four. Passages are
shared out between further training, demonstrations, validation and test; no passage is in two of them.

Reported of each base: nats a token of the test questions, and how much of a written question's words are those of the real one (F1): alone,
with V, with proxy-tuning, and fine-tuned itself. "Share" is the part of fine-tuning's gain in nats that is reached without touching the
base; its intervals are of a paired bootstrap over questions. All trainings on demonstrations stop by validation.
The folder holds every training's commits: the same command goes on where it was stopped.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from questions import Passages, nats, packed, word_overlap
from small_models import ROW, Size, begin, byte_level, pretrained, random_model, stories, trained

from perturbjax.ivl.combined import combine
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.relatives import proxy_tune
from perturbjax.ivl.value import ValueConfig, make_value
from perturbjax.pretrained import Model
from perturbjax.train import Training
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.problem import Problem
from perturbjax.train.step import Loss

SIZES = {"A": Size(64, 176, 2), "B": Size(96, 256, 3), "C": Size(160, 448, 4)}
FURTHER = "B further"
RATES = {"A": 3e-3, "B": 2e-3, "C": 1.5e-3}
"""Highest learning rates of pretraining."""


@dataclass(frozen=True)
class Family:
    """Sizes of the experiment: tokens of the vocabulary, steps of pretraining and of further training, questions of each part, the highest
    rates of V and of fine-tuning, and the penalty of V's norm."""

    vocab_size: int = 2048
    steps: int = 500
    further_steps: int = 150
    shown: int = 1000
    validation: int = 150
    test: int = 500
    steps_shown: int = 400
    value_rate: float = 1e-3
    tuned_rate: float = 5e-4
    penalties: tuple[float, ...] = (1.0, 0.0)


class Experiment:
    """The family of one seed, its demonstrations, and what is measured of it."""

    def __init__(self, family: Family, seed: int, out: Path, say: Callable[[str], None]):
        self.family, self.seed, self.out, self.say = family, seed, out, say
        self.passages = Passages.draw(family.shown, family.validation, family.test, seed)
        texts = stories()
        self.tokenizer = byte_level([*texts, *self.passages.text], family.vocab_size)
        self.bases: dict[str, Model] = {}
        for name, size in SIZES.items():
            start = random_model(name, size, self.tokenizer, seed)
            self.bases[name] = pretrained(start, texts, family.steps, RATES[name], seed, out / name, say)
            if name == "B":
                further = out / FURTHER.replace(" ", "-")
                found = pretrained(self.bases["B"], self.passages.text, family.further_steps, RATES["B"] / 3, seed, further, say)
                self.bases[FURTHER] = replace(found, name=FURTHER)
        self.shown, self.validation, self.test = (
            packed(part, self.tokenizer, ROW) for part in (self.passages.shown, self.passages.validation, self.passages.test)
        )

    def on_demonstrations(self, name: str, params: Any, loss: Loss, frozen: Any, rate: float) -> Any:
        """Parameters of the lowest validation loss of a training on the demonstrations."""
        steps = self.family.steps_shown
        training = Training(
            steps=steps, batch_rows=16, row_tokens=ROW, every=20, learning_rate=rate, warmup=0.05, weight_decay=0.01, patience=4
        )
        problem = Problem(params, [(loss, frozen)], self.shown, self.validation)
        return trained(problem, training, self.seed, self.out / name.replace(" ", "-"), self.say).params

    def value(self, penalty: float) -> tuple[ValueConfig, Any]:
        """V, which begins as A with a head of zeros, trained beside A."""
        a = self.bases["A"]
        config, start = make_value(a.config, a.params, seed=self.seed)
        frozen = jax.tree.map(jnp.asarray, a.params)
        loss = value_loss(config, a.config, jnp.float32, penalty)
        return config, self.on_demonstrations(f"V-{penalty:g}", start, loss, frozen, self.family.value_rate)

    def tuned(self, name: str) -> Model:
        base = self.bases[name]
        loss = fine_tuning_loss(base.config, jnp.float32)
        return replace(base, params=self.on_demonstrations(f"{name}-tuned", base.params, loss, None, self.family.tuned_rate))

    def rows(self) -> dict[str, dict[str, Any]]:
        """Base -> system -> figures of each test question."""
        values = {penalty: self.value(penalty) for penalty in self.family.penalties}
        tuned = {name: self.tuned(name) for name in self.bases}
        found: dict[str, dict[str, Any]] = {}
        for name, base in self.bases.items():
            systems = {"alone": base, "fine-tuned": tuned[name]}
            for penalty, (config, params) in values.items():
                systems["+ V" if penalty == self.family.penalties[0] else f"+ V, norm {penalty:g}"] = combine(base, config, params)
            systems["proxy-tuning"] = proxy_tune(base, tuned["A"], self.bases["A"])
            if name == "A":
                config, params = values[self.family.penalties[0]]
                systems["V alone"] = replace(base, config=config.decoder, params=params)
            found[name] = {system: self.measured(f"{name} {system}", model) for system, model in systems.items()}
        return found

    def measured(self, what: str, model: Model) -> dict[str, np.ndarray]:
        self.say(f"measuring {what}")
        summed, counts = nats(model, self.test)
        return {"nats": summed, "tokens": counts, "overlap": word_overlap(model, self.passages.test)}


def summary(found: dict[str, dict[str, Any]], seed: int, resamples: int = 2000) -> dict[str, dict[str, Any]]:
    """Base -> system -> nats a token, F1, and of the systems but "alone" the share of fine-tuning's gain with its 95 % interval."""
    rng = np.random.default_rng(seed)
    table: dict[str, dict[str, Any]] = {}
    for base, systems in found.items():
        alone, tuned = systems["alone"], systems["fine-tuned"]
        picks = rng.integers(0, len(alone["nats"]), (resamples, len(alone["nats"])))
        table[base] = {}
        for system, figures in systems.items():
            row = {"nats": figures["nats"].sum() / figures["tokens"].sum(), "overlap": float(figures["overlap"].mean())}
            if system not in ("alone", "fine-tuned"):
                gain, whole = alone["nats"] - figures["nats"], alone["nats"] - tuned["nats"]
                shares = gain[picks].sum(1) / whole[picks].sum(1)
                row |= {"share": gain.sum() / whole.sum(), "interval": np.percentile(shares, [2.5, 97.5]).tolist()}
            table[base][system] = row
    return table


def print_table(table: dict[str, dict[str, Any]]) -> None:
    print(f"{'base':12}{'':16}{'nats a token':>14}{'words (F1)':>12}   share of fine-tuning's gain, 95 % interval")
    for base, systems in table.items():
        for system, row in systems.items():
            low, high = row.get("interval", (0, 0))
            share = f"{row['share']:10.3f}   {low:.3f} to {high:.3f}" if "share" in row else ""
            print(f"{base:12}{system:16}{row['nats']:14.3f}{row['overlap']:12.3f}{share}")


def main() -> None:
    arguments, say = begin(__doc__ or "", Family.steps)
    experiment = Experiment(Family(steps=arguments.steps), arguments.seed, arguments.out, say)
    for name, model in experiment.bases.items():
        say(f"{name}: {sum(np.size(leaf) for leaf in jax.tree.leaves(model.params)):,} parameters")
    table = summary(experiment.rows(), arguments.seed)
    print_table(table)
    (arguments.out / "table.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
