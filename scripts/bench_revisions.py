#!/usr/bin/env python
"""Candidates of the default model at several commits of this repository, in turns: what a change to the code did to the speed.

    python scripts/bench_revisions.py 038f082 HEAD [--rounds 5] [--only sst2]

Each commit is checked out into a temporary worktree and gets a process of its own that compiles everything first and then waits; the
processes take turns, job by job and round by round. Printed are medians in seconds a candidate and, in brackets, how many times as fast as
the first commit that is. A commit's own defaults decide how it does a job (``auto``, where it has strategies). Needs git and the installed
model and data.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from inputs import at_least

CANDIDATES = 2
JOBS = {
    # name: (task, examples, noise, rank)
    "sst2, 64 questions, gaussian": ("sst2", 64, "gaussian", None),
    "sst2, 64 questions, rademacher": ("sst2", 64, "rademacher", None),
    "sst2, 64 questions, rank 1": ("sst2", 64, "gaussian", 1),
    "sst2, 8 questions, gaussian": ("sst2", 8, "gaussian", None),
    "sst2, 8 questions, rademacher": ("sst2", 8, "rademacher", None),
    "countdown, 32 puzzles, gaussian": ("countdown", 32, "gaussian", None),
    "countdown, 32 puzzles, rademacher": ("countdown", 32, "rademacher", None),
}
MODULES = {
    "Engine": ("perturbjax.inference", "perturbjax.scoring"),
    "Noise": ("perturbjax.noise", "perturbjax.perturb"),
    "Population": ("perturbjax.noise", "perturbjax.population"),
    "load_model": ("perturbjax.pretrained", "perturbjax.models"),
    "load_task": ("perturbjax.tasks",),
}
"""Where revisions have what the jobs use, the newest place first."""


def work(names: list[str]) -> None:
    """One commit's process: ready when all is compiled; then the seconds of each job it is asked for, a line each."""
    import time

    Engine, Noise, Population, load_model, load_task = map(find, ("Engine", "Noise", "Population", "load_model", "load_task"))
    model, runs = load_model("smollm2-135m"), {}
    population = Population(seed=0, size=CANDIDATES, sigmas=(0.001,))
    candidates = population.candidates() if hasattr(population, "candidates") else population[:]
    for name in names:
        task_name, count, distribution, rank = JOBS[name]
        task = load_task(task_name)
        engine = Engine(model, task, Noise(distribution, rank=rank), chunk=CANDIDATES)
        prepared = engine.prepare(task.examples()[:count], task.templates[0])
        runs[name] = lambda engine=engine, prepared=prepared: engine.run(candidates, prepared)
        runs[name]()
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        runs[line.strip()]()
        print(time.perf_counter() - started, flush=True)


def find(name: str) -> Any:
    """A class or function of the revision at hand, wherever it lay then."""
    for module in MODULES[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    sys.exit(f"this revision has {name} in none of {', '.join(MODULES[name])}")


def start(tree: Path, names: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, __file__, "--worker", *names]
    return subprocess.Popen(command, env=environment, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ask(process: subprocess.Popen[str], line: str | None) -> str:
    assert process.stdin and process.stdout
    if line is not None:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    if not (answer := process.stdout.readline().strip()):
        sys.exit(f"a process ended early (exit code {process.wait()}): see its messages above")
    return answer


def measure(trees: dict[str, Path], names: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by job and revision."""
    processes = {}
    for revision, tree in trees.items():
        processes[revision] = start(tree, names)
        ask(processes[revision], None)
        print(f"{revision}: compiled", file=sys.stderr)
    seconds = {name: {revision: [] for revision in trees} for name in names}
    for number in range(rounds):
        for name in names:
            for revision in list(trees)[:: 1 if number % 2 == 0 else -1]:
                seconds[name][revision].append(float(ask(processes[revision], name)) / CANDIDATES)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for process in processes.values():
        process.kill()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="+", metavar="COMMIT")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    names = [name for name in JOBS if options.only in name]
    if not names:
        parser.error(f"--only {options.only!r}: no job's name holds it; there are {'; '.join(JOBS)}")
    trees: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(root), "worktree"]
        try:
            for revision in options.revisions:
                tree = Path(folder, str(len(trees)))
                if subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision]).returncode:
                    sys.exit(2)
                trees[revision] = tree
                if not (link := tree / "perturbjax" / "kernels").exists():
                    link.symlink_to("../kernels")  # before 52ffda1 only an installation put it there
            found = measure(trees, names, options.rounds)
        finally:
            for tree in trees.values():
                subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    for name, by_revision in found.items():
        medians = {revision: statistics.median(values) for revision, values in by_revision.items()}
        first = medians[options.revisions[0]]
        print(f"{name:36}", *(f"{revision} {m:6.2f} s ({first / m:.2f})" for revision, m in medians.items()), sep="  ")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
    else:
        main()
