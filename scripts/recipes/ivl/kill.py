"""Kills a training of a value network with SIGKILL at random moments, resumes it, and compares the result with an undisturbed run.

    .venv/bin/python scripts/recipes/ivl/kill.py --base tests/fixtures/tiny_llama_tied --kills 5

Prints when it was killed and how many steps were committed then; ends with 1 unless the value networks (and, with --logits whole or top_k,
the logits) are equal byte for byte.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WEIGHTS = "value/value.safetensors"


def command(base: str, logits: str, questions: Path, out: Path) -> list[str]:
    """A training of 40 steps with 20 commits, in seconds."""
    settings = {"base": base, "logits": logits, "demonstrations": questions, "out": out, "validation-examples": 8, "test-examples": 8}
    settings |= {"steps": 40, "every": 2, "batch-rows": 2, "row-tokens": 64, "learning-rate": 0.01, "layers": 1}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "perturbjax", "ivl", *words, "--resume"]


def committed(run: Path) -> int:
    """Optimizer steps of the last whole line of metrics.jsonl."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def begun(run: Path) -> bool:
    """Whether the first file of logits is being written."""
    return any((run / "logits").glob("*/.rows-*"))


def shards(run: Path) -> str:
    """How many files of logits are whole, if there are any."""
    return f", {whole} files of logits" if (whole := len(list((run / "logits").glob("*/rows-*")))) else ""


def contents(run: Path) -> dict[str, bytes]:
    """The value network and the logits."""
    return {str(path.relative_to(run)): path.read_bytes() for path in (run / WEIGHTS, *(run / "logits").glob("*/*"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="as for perturbjax ivl; a tiny model will do")
    parser.add_argument("--logits", default="live", help="as for perturbjax ivl; whole, top_k: the first kill comes while they are written")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.jsonl"
        rows = [{"question": f"Is {n} even?", "answer": "no" if n % 2 else "yes", "choices": ["yes", "no"]} for n in range(60)]
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        started = time.monotonic()
        subprocess.run(command(options.base, options.logits, questions, whole), check=True, capture_output=True)
        print(f"undisturbed: {time.monotonic() - started:.0f} s, {committed(whole)} steps", flush=True)
        for kill in range(options.kills):
            words = command(options.base, options.logits, questions, broken)
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            aim = committed(broken) + 2 * draw.randint(1, 4)
            writing = kill == 0 and options.logits != "live"
            while process.poll() is None and (not begun(broken) if writing else committed(broken) < aim):
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            ended = process.wait() != -signal.SIGKILL
            print(f"kill {kill + 1}: " + ("came too late" if ended else f"at step {committed(broken)}{shards(broken)}"), flush=True)
        subprocess.run(command(options.base, options.logits, questions, broken), check=True, capture_output=True)
        same = contents(whole) == contents(broken)
        print(f"value networks and logits {'equal, byte for byte' if same else 'DIFFERENT'} after {options.kills} kills")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
