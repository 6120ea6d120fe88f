"""Kills a training of a chapter with SIGKILL at random moments, resumes it, and compares the result with an undisturbed run.

    .venv/bin/python scripts/kill_training.py ivl --base tests/fixtures/tiny_llama_tied --kills 5

Prints when it was killed and what was committed then; ends with 1 unless what was trained (and, of ivl with --logits whole or top_k, the
logits) is equal byte for byte. ``scripts/fault_drill.py`` does this, and more, to searches.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAINING = {"steps": 40, "every": 2, "batch-rows": 2, "row-tokens": 64, "learning-rate": 0.01}


@dataclass(frozen=True)
class Chapter:
    """A small run of a chapter, with 20 commits in some seconds.

    Attributes:
        inputs: flag -> file of ``write_inputs``; the model's flag is ``model``.
        settings: flag -> value.
        compared: files of the run, as glob patterns.
        counted: of a line of metrics.jsonl: what is done.
    """

    model: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    compared: tuple[str, ...]
    counted: str

    def command(self, name: str, base: str, folder: Path, out: Path) -> list[str]:
        given = {self.model: base, "out": out, **{flag: folder / file for flag, file in self.inputs.items()}, **self.settings}
        return [sys.executable, "-m", "perturbjax", name, *(word for flag, value in given.items() for word in (f"--{flag}", str(value)))]


CHAPTERS = {
    "ivl": Chapter(
        "base",
        {"demonstrations": "questions.jsonl"},
        TRAINING | {"validation-examples": 8, "test-examples": 8, "layers": 1},
        ("value/value.safetensors", "logits/*/*"),
        "step",
    ),
    "vpretrain": Chapter(
        "model",
        {"corpus": "texts.jsonl", "feedback": "questions.jsonl"},
        TRAINING
        | {"feedback-examples": 8, "validation-examples": 4, "test-examples": 6, "feedback-rows": 2, "candidates": 8}
        | {"meta-period": 2, "subset-layers": 1, "designer-hidden": 16, "designer-layers": 1},
        ("model/model.safetensors", "designer/designer.safetensors"),
        "step",
    ),
    "caulking": Chapter(
        "base",
        {"target": "questions.jsonl"},
        {"samples": "4,8", "seeds": 5, "sigmas": "0,0.1", "in-flight": 1, "steps": 20, "batch": 2, "rank": 2, "test-examples": 8},
        ("cells.parquet", "caulks/*"),
        "done",
    ),
}


def write_inputs(folder: Path) -> None:
    """Questions, and texts that they do not occur in."""
    questions = [{"question": f"Is {n} even?", "answer": "no" if n % 2 else "yes", "choices": ["yes", "no"]} for n in range(60)]
    texts = [{"text": f"Number {n} of a list, with {n * n} beside it, and so on to the end of this line."} for n in range(240)]
    for name, rows in (("questions", questions), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def committed(run: Path, counted: str) -> int:
    """What the last whole line of metrics.jsonl counts."""
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])[counted]
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def begun(run: Path) -> bool:
    """Whether the first file of logits is being written."""
    return any((run / "logits").glob("*/.rows-*"))


def shards(run: Path) -> str:
    """How many files of logits are whole, if there are any."""
    return f", {whole} files of logits" if (whole := len(list((run / "logits").glob("*/rows-*")))) else ""


def contents(run: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for pattern in patterns for path in run.glob(pattern)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("chapter", choices=tuple(CHAPTERS))
    parser.add_argument("--base", required=True, help="a model's directory; a tiny one will do")
    parser.add_argument("--logits", default="live", help="of ivl; whole, top_k: the first kill comes while they are written")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if options.logits != "live" and options.chapter != "ivl":
        parser.error(f"--logits {options.logits}: {options.chapter} writes none")
    chapter, draw = CHAPTERS[options.chapter], random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        whole, broken = folder / "whole", folder / "broken"
        more = ["--logits", options.logits] if options.chapter == "ivl" else []
        command = {out: chapter.command(options.chapter, options.base, folder, out) + more for out in (whole, broken)}
        started = time.monotonic()
        subprocess.run(command[whole], check=True, capture_output=True)
        print(f"undisturbed: {time.monotonic() - started:.0f} s, {chapter.counted} {committed(whole, chapter.counted)}", flush=True)
        for kill in range(options.kills):
            words = [*command[broken], "--resume"]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            aim = committed(broken, chapter.counted) + 2 * draw.randint(1, 4)
            writing = kill == 0 and options.logits != "live"
            while process.poll() is None and (not begun(broken) if writing else committed(broken, chapter.counted) < aim):
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            ended = process.wait() != -signal.SIGKILL
            where = f"at {chapter.counted} {committed(broken, chapter.counted)}{shards(broken)}"
            print(f"kill {kill + 1}: {'came too late' if ended else where}", flush=True)
        subprocess.run([*command[broken], "--resume"], check=True, capture_output=True)
        one, other = (contents(run, chapter.compared) for run in (whole, broken))
        same = bool(one) and one == other
        print(f"{len(one)} files {'equal, byte for byte' if same else 'DIFFERENT'} after {options.kills} kills")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
