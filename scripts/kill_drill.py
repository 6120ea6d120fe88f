#!/usr/bin/env python
"""Kill -9 a real search at random moments, resume it, and compare what it wrote with an undisturbed run.

    .venv/bin/python scripts/kill_drill.py [--kills 5] [--seed 0] [--keep DIR] [-- SEARCH ARGUMENTS]

Each kill has its own search: it is started, killed when a random number of its candidates has been scored plus a random part of the time
that a chunk takes, and resumed to its end, in chunks of another size, which must not matter. candidates.parquet and ensemble.json must be
equal to those of an undisturbed run, byte for byte, and metrics.jsonl must count every candidate once. Prints a table; the exit code is 1
if anything differs.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = ["--population=24", "--top-k=3", "--search-examples=32", "--select-examples=8", "--test-examples=8"]
CHUNK = 3
COMPARED = ("candidates.parquet", "ensemble.json")


def command(out: Path, chunk: int, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "perturbjax.cli", "search", *arguments, "--chunk", str(chunk), "--out", str(out), "--resume"]


def start(out: Path, chunk: int, arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command(out, chunk, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, out: Path) -> None:
    _, said = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the search in {out} failed with {process.returncode}:\n{said}")


def kill_at(process: subprocess.Popen, out: Path, done: int, delay: float) -> None:
    """Kill -9 once that many candidates are reported, and a little later."""
    while process.poll() is None and scored(out) < done:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"the search in {out} ended with {process.returncode} before it could be killed")


def lines(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def scored(out: Path) -> int:
    """Candidates scored so far, one counted once for each round of the race that it took part in."""
    return sum(line["candidates"] for line in lines(out))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; random when left out")
    parser.add_argument(
        "--keep", type=Path, default=None, help="directory for the runs; a temporary one, removed at the end, when left out"
    )
    parser.add_argument("arguments", nargs="*", help="of `perturbjax search`, after --; a small search when left out")
    options = parser.parse_args()
    arguments = options.arguments or SMALL
    moments = random.Random(options.seed)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="kill-drill-"))
    if options.keep is not None:
        folder.mkdir(parents=True)

    started = time.monotonic()
    finish(start(folder / "undisturbed", CHUNK, arguments), folder / "undisturbed")
    last, total = lines(folder / "undisturbed")[-1], scored(folder / "undisturbed")
    of_a_chunk = last["elapsed"] / last["chunk"]
    print(f"perturbjax search {' '.join(arguments)}")
    scores = f"{total} candidates scored in {last['rounds']} rounds"
    print(f"undisturbed: {time.monotonic() - started:.1f} s, {scores}, {of_a_chunk:.2f} s a chunk of {CHUNK}")
    print(f"{'kill':>4} {'at':>9} {'later by':>9} {'committed':>10} {'resumed in':>10}  " + "  ".join(COMPARED) + "  metrics.jsonl")
    different = 0
    for number in range(1, options.kills + 1):
        out = folder / f"killed-{number}"
        done, delay = moments.randrange(total), moments.uniform(0, of_a_chunk)
        kill_at(start(out, CHUNK, arguments), out, done, delay)
        steps = [int(path.name) for path in (out / "state").iterdir() if path.name.isdigit()] if (out / "state").exists() else []
        committed = sum(line["candidates"] for line in lines(out) if line["chunk"] <= max(steps, default=0))
        started = time.monotonic()
        finish(start(out, CHUNK - 1, arguments), out)
        seconds = time.monotonic() - started
        same = [(out / name).read_bytes() == (folder / "undisturbed" / name).read_bytes() for name in COMPARED]
        once = scored(out) == total
        different += not (all(same) and once)
        verdicts = [
            f"{'equal' if ok else 'DIFFERENT':<{len(name)}}" for ok, name in zip([*same, once], [*COMPARED, "metrics.jsonl"], strict=True)
        ]
        print(f"{number:>4} {done:>5}/{total:<3} {delay:>7.2f} s {committed:>10} {seconds:>8.1f} s  {'  '.join(verdicts)}", flush=True)
    print(f"{options.kills - different} of {options.kills} equal to the undisturbed run")
    if options.keep is None:
        shutil.rmtree(folder)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
