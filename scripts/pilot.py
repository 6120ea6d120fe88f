"""Which task, prompt and noise should the default run use? A look at search and select rows only; test rows stay unseen.

    python scripts/pilot.py [--tasks sst2,boolq] [--templates sentence,few_shot] [--noises all:0.001,embedding:0.005]

One line for each task, prompt template and noise: the base on the search rows; mean, deviation and best of the candidates; the reliability
of their scores; then on select rows the base, the vote of the K best, that of K random candidates, and the first minus the base (paired
95 % interval). A noise is GROUP:SIGMA, gaussian, a group of ``perturbjax study density``. Candidates, splits and seeds are the same in all
lines. Tasks that cannot fill the splits (rte: 277 rows) need smaller ones.
"""

import argparse
import sys
import time

import numpy as np
from inputs import at_least, exit_code

from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.models.noise_groups import GROUPS, decoder_noise
from perturbjax.noise import Population
from perturbjax.pretrained import load_model
from perturbjax.randopt import Config
from perturbjax.randopt.flow import run_base, run_members, vote_curve
from perturbjax.randopt.reliability import reliability
from perturbjax.report.accounting import paired_bootstrap
from perturbjax.scoring import top_k
from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.splits import make_splits


def noise(text: str) -> tuple[str, float]:
    """A type for argparse: GROUP:SIGMA."""
    group, _, sigma = text.partition(":")
    try:
        value = float(sigma)
    except ValueError:
        value = 0.0
    if group not in GROUPS or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: GROUP:SIGMA is required, a group of {', '.join(GROUPS)} and a positive number")
    return group, value


def main() -> None:
    defaults = Config()
    seed = defaults.search.seed
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst2,boolq,arc_easy,arithmetic")
    parser.add_argument("--templates", help="names; the task's first when left out")
    parser.add_argument("--noises", type=lambda text: [noise(part) for part in text.split(",")], default=[("all", 0.001)])
    parser.add_argument("--population", type=at_least(2), default=24)
    parser.add_argument("--examples", type=at_least(2), default=48)
    parser.add_argument("--test-examples", type=at_least(1), default=defaults.data.test_examples, help="as the run has them; not read")
    parser.add_argument("--top-k", type=at_least(1), default=8)
    options = parser.parse_args()
    if options.top_k > options.population:
        parser.error(f"--top-k {options.top_k}: at most the {options.population} of --population are required")
    tasks = [load_task(name) for name in options.tasks.split(",")]
    if options.templates and len(tasks) > 1:
        raise InputError(f"`templates` {options.templates}: they are those of one task; name one in --tasks")
    model = load_model(defaults.base.model)
    count = options.population
    drawn = np.random.default_rng(seed).permutation(count)[: options.top_k]
    print(f"{model.source}; N = {count}, K = {options.top_k}, {options.examples} search and {options.examples} select rows")
    print(f"{'':44s}{'search':>6s} {'mean':>5s} {'sd':>5s} {'best':>5s} {'rel.':>5s} {'select':>7s} {'best K':>6s} {'random':>6s}")
    for task in tasks:
        # Assigned as in the default run, so that its test rows are not among these.
        splits = make_splits(task.examples(), options.examples, options.examples, options.test_examples, seed)
        names = options.templates.split(",") if options.templates else [task.templates[0].name]
        for template in [template_by_name(task, name) for name in names]:
            for group, sigma in options.noises:
                started = time.perf_counter()
                engine = Engine(model, task, decoder_noise(rules=GROUPS[group]), chunk=defaults.machine.chunk)
                population = Population(seed, count, (sigma,))
                search, select = engine.prepare(splits.search, template), engine.prepare(splits.select, template)
                scores = run_members(engine, population, np.arange(count), search, "search").scores
                means, found = scores.mean(1), reliability(scores, options.examples)
                best = top_k(scores, options.top_k)
                vote, random = (vote_curve(run_members(engine, population, pool, select, "select")).scores[-1] for pool in (best, drawn))
                base = run_base(engine, select).scores[0]
                low, high = paired_bootstrap(vote, base, seed=seed)
                figures = (
                    run_base(engine, search).scores.mean(),
                    means.mean(),
                    means.std(ddof=1),
                    means.max(),
                    found.value if found else 0.0,
                )
                print(
                    f"{task.name + ' ' + template.name:26s}{group + ' ' + format(sigma, 'g'):17s}"
                    + " ".join(f"{value:.3f}" for value in figures)
                    + f"   {base.mean():.3f}  {vote.mean():.3f}  {random.mean():.3f}"
                    f"   {np.mean(vote - base):+.3f} [{low:+.3f}, {high:+.3f}]  in {time.perf_counter() - started:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(exit_code(main))
