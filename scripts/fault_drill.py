#!/usr/bin/env python
"""Disturb real searches in every way that they promise to survive, continue them, and compare with an undisturbed one.

    .venv/bin/python scripts/fault_drill.py [--kills 20] [--seed 0] [--keep DIR]
    .venv/bin/python scripts/fault_drill.py --model smollm2-135m --kills 5
    .venv/bin/python scripts/fault_drill.py --commits RUN

The first runs a small search (the tiny model of the tests) on two processes of this machine: kill -9 of one of them or of both, at --kills
random moments in all, each continued on another mesh or number of processes; SIGTERM; processes that hang, do not come, or do not see the
run directory; candidates without numbers; and, from the tests, a damaged state and too little memory. candidates.parquet and ensemble.json
must be equal to those of the undisturbed run, byte for byte, metrics.jsonl must count every candidate once, and no committed chunk may be
lost. The second kills searches of one process with a model of your choice; the third says what commits cost a run that is there. The exit
code is 1 if anything differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fault_runs as runs
from inputs import at_least, directory, exit_code

TESTS = Path(__file__).parent.parent / "tests"
MODEL = TESTS / "fixtures" / "tiny_llama3"
SPLITS = ["--top-k=3", "--search-examples=32", "--select-examples=8", "--test-examples=8"]
DISTURBED: list[dict[str, Any]] = [{"processes": 2}, {"processes": 2, "model": 2}, {"processes": 2, "devices": 2, "model": 2}]
CONTINUED: list[dict[str, Any]] = [{"processes": 1}, {"processes": 1, "devices": 2, "model": 2}, *DISTURBED]
FROM_TESTS = {
    "damaged state": ["runs/test_state.py", "-k", "damaged_state or interrupted"],
    "out of memory": ["inference/test_engine.py", "-k", "does_not_fit"],
    "NaN, one program": ["inference/test_engine.py", "-k", "broken_candidate"],
}
ARRIVAL_S = 10
"""For processes that do not come; 300 s otherwise. The limit for one that hangs is left as it is."""


def mesh_of(how: dict[str, Any]) -> str:
    devices, model = how.get("processes", 1) * how.get("devices", 1), how.get("model", 1)
    return f"{how.get('processes', 1)} process{'es' if how.get('processes', 1) > 1 else ''} {devices // model}x{model}"


class Drill:
    """A search, its undisturbed run, and what came of disturbing it."""

    def __init__(self, folder: Path, arguments: list[str], moments: random.Random):
        self.folder, self.arguments, self.moments = folder, arguments, moments
        self.undisturbed, self.failed, self.done = folder / "undisturbed", 0, 0
        started = time.monotonic()
        runs.complete(self.undisturbed, arguments)
        self.lines = runs.lines(self.undisturbed)
        self.of_a_chunk = max(0.3, self.lines[-1]["elapsed"] / len(self.lines))
        scored = sum(line["candidates"] for line in self.lines)
        print(f"perturbjax randopt {' '.join(arguments)}")
        print(f"undisturbed: {time.monotonic() - started:.1f} s, {scored} candidates scored in {len(self.lines)} chunks\n")
        print(f"{'what':<27} {'on':<17} {'at':<18} {'ended in':<9} {'codes':<9} {'on disk':<8} {'continued on':<17} verdict")

    def row(self, what: str, on: str, at: str, seconds: float | None, codes: object, kept: str, then: str, wrong: list[str]) -> None:
        ended = "" if seconds is None else f"{seconds:.2f} s"
        verdict = "; ".join(wrong) or "as it should be"
        print(f"{what:<27} {on:<17} {at:<18} {ended:<9} {codes!s:<9} {kept:<8} {then:<17} {verdict}", flush=True)
        self.failed += bool(wrong)
        self.done += 1

    def disturb(self, what: str, number: signal.Signals, victims: list[int], how: dict[str, Any], expected: list[int], then: Any) -> None:
        """One search: disturbed at a random moment, the exit codes compared, continued as ``then`` says (not at all, if None)."""
        out = self.folder / f"{self.done + 1}"
        chunks, later = self.moments.randrange(1, len(self.lines) - 3), self.moments.uniform(0, self.of_a_chunk)
        with runs.Run(out, self.arguments, **how) as run:
            before = run.wait_for(chunks, later)
            run.send(number, victims)
            hanging = victims if number == signal.SIGSTOP else []
            codes, seconds = run.end(within=120, but=hanging)
        wrong = [] if codes == expected else [f"exit codes {expected} were expected"]
        wrong += [f"process {index}: a traceback" for index, said in enumerate(run.said) if "Traceback" in said or "Check failure" in said]
        steps = [int(path.name) for path in (out / "state").iterdir() if path.name.isdigit()]
        if then is not None:
            runs.complete(out, self.arguments, **then)
            wrong += runs.differences(out, self.undisturbed, before)
        at = f"chunk {len(before)}, +{later:.2f} s"
        self.row(what, mesh_of(how), at, seconds, codes, f"{max(steps, default=0)}", "" if then is None else mesh_of(then), wrong)
        shutil.rmtree(out)

    def kills(self, count: int, shapes: list[dict[str, Any]], continued: list[dict[str, Any]]) -> None:
        """kill -9 at that many moments, of each process and of all in turn."""
        from perturbjax.cluster.peers import PEER_LOST

        several = shapes[0].get("processes", 1) > 1
        turns = [[0], [1], [0, 1]] if several else [[0]]
        for number in range(count):
            how, then, victims = self.moments.choice(shapes), self.moments.choice(continued), turns[number % len(turns)]
            expected = [-signal.SIGKILL if index in victims else PEER_LOST for index in range(2 if several else 1)]
            who = "both" if len(victims) == 2 else f"process {victims[0]}"
            self.disturb(f"kill -9 of {who}", signal.SIGKILL, victims, how, expected, then)

    def stops(self) -> None:
        from perturbjax.cluster.peers import PEER_LOST, PREEMPTED

        pair = DISTURBED[0]
        for victims in ([0], [1], [0, 1]):
            who = f"process {victims[0]}" if len(victims) == 1 else "both"
            self.disturb(f"SIGTERM to {who}", signal.SIGTERM, victims, pair, [PREEMPTED] * 2, self.moments.choice(CONTINUED))
        for victim in (0, 1):
            what = f"SIGSTOP of process {victim}"
            self.disturb(what, signal.SIGSTOP, [victim], pair, [PEER_LOST], self.moments.choice(CONTINUED))

    def absences(self) -> None:
        from perturbjax.cluster.peers import PEER_LOST

        program = [
            sys.executable,
            str(runs.PROGRAM),
            f'{{"perturbjax.cluster.distributed.ARRIVAL_S": {ARRIVAL_S}}}',
            "randopt",
            *self.arguments,
        ]
        for alone in (0, 1):
            joining = ["--coordinator", f"127.0.0.1:{runs.free_port()}", "--num-processes", "2", "--process-id", str(alone)]
            started = time.monotonic()
            done = subprocess.run(
                [*program, *joining], capture_output=True, text=True, cwd=self.folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}
            )
            wrong = [] if done.returncode == PEER_LOST and "not all processes met" in done.stderr else [done.stderr[-200:]]
            seconds = time.monotonic() - started
            self.row(f"process {1 - alone} does not come", "", f"limit {ARRIVAL_S} s", seconds, [done.returncode], "", "", wrong)
        other = {"elsewhere": str(self.folder / "other"), "perturbjax.runs.state.VISIBLE_S": 2.0}
        with runs.Run(self.folder / "seen-by-one", self.arguments, processes=2, limits=[{}, other]) as run:
            codes, _ = run.end(within=120)
        wrong = [] if codes == [2, 2] and "does not see what process 0 wrote" in run.said[0] else [run.said[0][-200:]]
        self.row("--out seen by process 0", mesh_of(DISTURBED[0]), "", None, codes, "", "", wrong)

    def failures(self) -> None:
        """A process that fails for a reason of its own: full disks, and an error of the program."""
        cases = {
            "disk full on process 0": ([{"file_bytes": 4000}, {}], "File too large; what "),
            "program fails on process 0": ([{"perturbjax.inference.engine.grade": None}, {}], "is not callable"),
            "program fails on process 1": ([{}, {"perturbjax.inference.engine._chosen": None}], "process 1 of 2 has ended"),
        }
        for what, (limits, words) in cases.items():
            with runs.Run(self.folder / what.replace(" ", "-"), self.arguments, processes=2, limits=limits) as run:
                codes, seconds = run.end(within=120)
            wrong = [] if codes == [1, 1] and words in run.said[0].splitlines()[-1] else [run.said[0][-200:]]
            self.row(what, mesh_of(DISTURBED[0]), "from the start", seconds, codes, "", "", wrong)

    def broken_candidates(self) -> None:
        """A third of the candidates move their weights beyond every number."""
        out = self.folder / "broken"
        sigmas = self.arguments.index("--sigmas") + 1
        arguments = [*self.arguments[:sigmas], "0.01,0.1,1e38", *self.arguments[sigmas + 1 :]]
        with runs.Run(out, arguments, processes=2) as run:
            codes, _ = run.end(within=300)
        counted = max(line["nonfinite"] for line in runs.lines(out) if line["round"] == 1)
        population = int(self.arguments[self.arguments.index("--population") + 1])
        wrong = [] if codes == [0, 0] and counted == population // 3 else [f"{counted} of {population} counted"]
        self.row(f"NaN in {counted} of {population} candidates", mesh_of(DISTURBED[0]), "", None, codes, "", "", wrong)

    def from_tests(self) -> None:
        for what, node in FROM_TESTS.items():
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / node[0]), *node[1:]]
            done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
            last = done.stdout.strip().splitlines()[-1]
            passed, wrong = last.split(" in ")[0].split(",")[0], [] if done.returncode == 0 else [last]
            self.row(what, "1 process 1x1", f"tests: {passed}", None, "", "", "", wrong)


def tiny(folder: Path) -> list[str]:
    questions = runs.write_questions(folder / "questions.jsonl", 48)
    settings = ["--population", "63", "--sigmas", "0.01,0.1", "--chunk", "2", "--compile-cache", str(folder / "programs")]
    return ["--model", str(MODEL), "--task", str(questions), *SPLITS, *settings]


def commits(run: Path) -> None:
    """How long the search of a run stood still for its commits, by its metrics.jsonl."""
    from perturbjax.errors import InputError

    lines = runs.lines(run)
    if not lines:
        raise InputError(f"--commits {run}: a run with metrics.jsonl is required")
    waited, scored = sum(line["commit_s"] for line in lines), lines[-1]["elapsed"]
    print(
        f"{len(lines)} commits: {waited:.2f} s waited for, beside {scored:.1f} s of scoring: {waited / (waited + scored):.2%} of the search"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=at_least(1), default=20)
    parser.add_argument("--seed", type=at_least(0), default=None, help="of the moments; random when left out")
    parser.add_argument("--keep", type=Path, default=None, help="directory, not there yet, for what the drill writes")
    parser.add_argument("--model", default=None, help="kill searches of one process with this model, and nothing else")
    parser.add_argument("--commits", type=directory, default=None, metavar="RUN", help="only say what commits cost this run")
    options = parser.parse_args()
    if options.keep is not None and options.keep.exists():
        parser.error(f"--keep {options.keep}: a directory that is not there yet is required")
    if options.keep is not None:
        try:
            options.keep.mkdir(parents=True)
        except OSError as error:
            parser.error(f"--keep {options.keep}: cannot be made ({error.strerror})")
    return options


def main() -> int:
    options = arguments()
    if options.commits is not None:
        commits(options.commits)
        return 0
    if options.keep is not None:
        return drill(options, options.keep)
    with tempfile.TemporaryDirectory(prefix="fault-drill-") as folder:
        return drill(options, Path(folder))


def drill(options: argparse.Namespace, folder: Path) -> int:
    """Everything that was asked for, in ``folder``; the exit code."""
    moments = random.Random(options.seed)
    if options.model is not None:
        drilled = Drill(folder, ["--model", options.model, *SPLITS, "--population", "24", "--chunk", "3"], moments)
        drilled.kills(options.kills, [{"processes": 1}], [{"processes": 1}, {"processes": 1, "devices": 2}])
    else:
        drilled = Drill(folder, tiny(folder), moments)
        drilled.kills(options.kills, DISTURBED, CONTINUED)
        drilled.stops()
        drilled.absences()
        drilled.failures()
        drilled.broken_candidates()
        drilled.from_tests()
    print(f"{drilled.done - drilled.failed} of {drilled.done} as they should be")
    return int(drilled.failed > 0)


if __name__ == "__main__":
    sys.exit(exit_code(main))
