"""Which installed task should the default run use? A look at search and select rows only; test rows stay unseen.

    python scripts/pilot.py [--tasks sst2,boolq,arc_easy,arithmetic] [--population 24] [--examples 48] [--top-k 8]

For each task: score the population on search rows, keep the top K, and compare their vote with the base on select rows (paired
95 % interval).
Tasks that cannot fill the default run's splits (rte: 277 rows) are left out.
"""

import argparse
import sys
import time

import numpy as np
from inputs import at_least, exit_code

from perturbjax.inference import Engine
from perturbjax.noise import Noise, Population
from perturbjax.pretrained import load_model
from perturbjax.randopt import Config
from perturbjax.randopt.flow import run_base, run_members, vote_curve
from perturbjax.report.accounting import paired_bootstrap
from perturbjax.scoring import top_k
from perturbjax.tasks import load_task
from perturbjax.tasks.splits import make_splits


def main() -> None:
    defaults = Config()
    seed = defaults.search.seed
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst2,boolq,arc_easy,arithmetic")
    parser.add_argument("--population", type=at_least(1), default=24)
    parser.add_argument("--examples", type=at_least(1), default=48)
    parser.add_argument("--top-k", type=at_least(1), default=8)
    options = parser.parse_args()
    if options.top_k > options.population:
        parser.error(f"--top-k {options.top_k}: at most the {options.population} of --population are required")
    model = load_model(defaults.base.model)
    population = Population(seed, options.population, defaults.search.to_population().sigmas)
    print(f"{model.source}; N = {options.population}, K = {options.top_k}, {options.examples} search and {options.examples} select rows")
    print(f"{'task':12s} {'base search':>11s} {'mean':>6s} {'best':>6s} {'base select':>12s} {'vote select':>12s}   difference")
    for name in options.tasks.split(","):
        started = time.perf_counter()
        task = load_task(name)
        template = task.templates[0]
        # Assigned as in the default run, so that its test rows are not among these.
        splits = make_splits(task.examples(), options.examples, options.examples, defaults.data.test_examples, seed)
        engine = Engine(model, task, Noise(defaults.search.noise), chunk=defaults.machine.chunk)
        search, select = engine.prepare(splits.search, template), engine.prepare(splits.select, template)
        scores = run_members(engine, population, np.arange(len(population)), search, "search").scores
        best = top_k(scores, options.top_k)
        vote = vote_curve(run_members(engine, population, best, select, "select")).scores[-1]
        base = run_base(engine, select).scores[0]
        low, high = paired_bootstrap(vote, base, seed=seed)
        means = scores.mean(1)
        on_search = f"{run_base(engine, search).scores.mean():11.3f} {means.mean():6.3f} {means.max():6.3f}"
        on_select = f"{base.mean():12.3f} {vote.mean():12.3f}   {np.mean(vote - base):+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"{name:12s} {on_search} {on_select}  in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
