"""Density against pretraining: how many candidates around a model are better at a task that it was not trained on, from random to trained.

    python scripts/recipes/randopt/pretraining.py --out /tmp/pretraining

Two sizes of decoder are pretrained here on HellaSwag's stories, for 0, 25, 100 and 400 steps of 4,096 tokens from the same random start.
The task is to ask a question about a passage (BoolQ); its score is the log-probability of the question's tokens, a mean a row, so margins
are in nats a token. Noise is relative to each leaf's RMS, so that one sigma means as much around every model. Shares stand beside what is
left of them without the noise of the rows (``studies.density``).

A neighborhood is named at one margin and its best sigma, by a rule of ours. **thicket**: at least a tenth of the candidates gain the
margin, net of luck. Fewer do: **plateau** where the mean candidate loses less than the margin, **needle** where it loses more.
The folder has the trainings, results.json and density.png, and is continued when the script is interrupted.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "ivl"))

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from questions import Passages, packed
from small_models import ROW, Size, begin, byte_level, pretrained, random_model, stories

import perturbjax as pj
from perturbjax.pretrained import Model
from perturbjax.records import to_json
from perturbjax.report import figure as draw
from perturbjax.runs.files import write_json
from perturbjax.studies import density
from perturbjax.train.rows import Rows, at_queries, segment_mask
from perturbjax.train.step import cross_entropy

SIZES = {"small": Size(64, 176, 2), "large": Size(128, 352, 3)}
RATES = {"small": 3e-3, "large": 2e-3}
STEPS = (0, 25, 100)
"""Before the last, which ``--steps`` says."""
SIGMAS = (0.03, 0.1, 0.3)
CANDIDATES, TASK_ROWS, MARGIN, DENSE = 96, 32, 0.01, 0.1
Scores = tuple[np.ndarray, np.ndarray]
"""(D,) of the base and (N, D) of the candidates."""


def scores_of(model: Model, rows: Rows, population: pj.Population) -> Scores:
    """Mean log-probability of the asked tokens of each row."""

    def fn(params: Any, batch: Any) -> Any:
        decoder = model.config.build(params)
        hidden, _ = decoder(batch["tokens"], batch["positions"], segment_mask(batch["segments"]))
        losses = cross_entropy(decoder.logits(at_queries(hidden, batch["query"])), batch["labels"])
        return -jnp.sum(losses * batch["weights"], axis=-1) / jnp.sum(batch["weights"], axis=-1)

    scorer = pj.Scorer(fn, model.params, pj.Noise(scale="rms"), chunk=16)
    batch = rows.batch(np.arange(TASK_ROWS))
    base = np.asarray(scorer(pj.Candidate.base(1), batch))[0]
    return base, np.asarray(scorer(population[:], batch))


def name_of(rows: list[density.Row]) -> str:
    """Needle, plateau or thicket, by the rule above."""
    best = max(rows, key=lambda row: row.levels[-1].net)
    if best.levels[-1].net >= DENSE:
        return "thicket"
    return "plateau" if best.mean_gain.value > -MARGIN else "needle"


def main() -> None:
    arguments, say = begin(__doc__ or "", steps=400)
    seed, out = arguments.seed, arguments.out
    config = density.Config(margins=(0.0, MARGIN), seed=seed, sigmas=SIGMAS, candidates=CANDIDATES, scale="rms")
    population, texts, passages = config.population(), stories(), Passages.draw(200, 1, 1, seed)
    sigmas = population.sigma_of(np.arange(len(population)))
    tokenizer = byte_level([*texts, *passages.text], 2048)
    rows = packed(passages.shown, tokenizer, ROW)
    found = []
    figure, (axis,) = draw.new_figure(3.4)
    for name, size in SIZES.items():
        points = []
        for steps in (*STEPS, arguments.steps):
            start = replace(random_model(name, size, tokenizer, seed), name=f"{name}, {steps} steps")
            model = pretrained(start, texts, steps, RATES[name], seed, out / f"{name}-{steps}", say) if steps else start
            base, scores = scores_of(model, rows, population)
            measured = [density.measure("all", sigma, scores[sigmas == np.float32(sigma)], base, config) for sigma in SIGMAS]
            entry = {"model": model.name, "nats": -float(base.mean()), "name": name_of(measured), "rows": to_json(measured)}
            found.append(entry)
            points.append((entry["nats"], max(row.levels[-1].net for row in measured)))
            say(f"{model.name}: {entry['nats']:.3f} nats a token of the task, {entry['name']}")
            for row in measured:
                gain, level = row.mean_gain, row.levels[-1]
                low, high = level.density.interval
                kept = (
                    "-" if level.kept is None else f"{level.kept.value:+.4f} [{level.kept.interval[0]:+.4f}, {level.kept.interval[1]:+.4f}]"
                )
                share = f"{level.density.value:6.1%} [{low:.0%}, {high:.0%}]  net {level.net:6.1%}"
                means = f"{gain.value:+.4f} [{gain.interval[0]:+.4f}, {gain.interval[1]:+.4f}]"
                print(f"    sigma {row.sigma:<5g} mean gain {means}  {MARGIN:g} nats or more {share}  kept {kept}", flush=True)
        x, y = np.array(points).T
        axis.plot(x, y, marker="os"[len(found) > 4], color=(draw.BLUE, draw.VERMILLION)[len(found) > 4], label=name)
    axis.invert_xaxis()
    axis.set(xlabel="base, nats a token of the task (better to the right)", ylabel=f"gain {MARGIN:g} nats or more, net of luck")
    draw.percent_axis(axis, "y")
    axis.legend(frameon=False)
    draw.save(figure, out / "density.png")
    write_json(out / "results.json", {"seed": seed, "models": found})


if __name__ == "__main__":
    main()
