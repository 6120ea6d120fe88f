"""Caulks of SmolLM2-135M-Instruct, the base moved by growing noise too: how many labeled examples pretraining saves.

    python scripts/recipes/caulking/language.py --out /tmp/language --parts sst2-head

SST-2 asks for a mood, which a few examples can show; RTE for entailment, and ARC-Easy (its questions of four choices) for facts, which they
cannot. Parts are grids of their own, so that each is small enough to wait for; a folder is continued when it is there. Those of a head
cost minutes: its features are made once for a base. RTE has 277 examples: ask for ``--samples 8,32,128 --test 128``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from perturbjax.tasks import load_task

PARTS: dict[str, dict[str, str]] = {
    "sst2-head": {"target": "sst2", "methods": "head", "accuracies": "0.8,0.85"},
    "sst2-lora": {"target": "sst2", "methods": "lora", "accuracies": "0.8,0.85"},
    "sst2-full": {"target": "sst2", "methods": "full,scratch", "accuracies": "0.8,0.85"},
    "rte-head": {"target": "rte", "methods": "head", "accuracies": "0.55,0.6"},
    "rte-lora": {"target": "rte", "methods": "lora", "accuracies": "0.55,0.6"},
    "arc-lora": {"target": "arc.jsonl", "template": "texts", "methods": "lora", "accuracies": "0.4,0.5"},
}


def write_arc(path: Path) -> None:
    """ARC-Easy's questions of four choices: a grid's questions have one number of them."""
    with path.open("w") as file:
        for each in load_task("arc_easy").examples():
            if len(each.choices) == 4:
                options = list(each.fields["options"])
                row = {"id": each.id, "question": each.question, "choices": options, "answer": options[each.choices.index(each.answer)]}
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the grids; continued when it is there")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated (default: all)")
    parser.add_argument("--sigmas", default="0,0.003,0.01,0.03", help="of the noise that moves the base (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", default="8,32,128,512", help="examples, comma separated (default: %(default)s)")
    parser.add_argument("--test", type=int, default=256, help="test questions")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="questions of a step")
    parser.add_argument("--in-flight", type=int, default=4, help="caulks trained together")
    args = parser.parse_args()
    if unknown := [name for name in args.parts.split(",") if name not in PARTS]:
        parser.error(f"--parts {args.parts}: no {unknown[0]!r}; some of {', '.join(PARTS)} are required")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.parts.split(","):
        settings = PARTS[name] | {"sigmas": args.sigmas, "samples": args.samples, "seeds": args.seeds, "steps": args.steps}
        settings |= {
            "batch": args.batch,
            "test-examples": args.test,
            "in-flight": args.in_flight,
            "dtype": "float32",
            "out": args.out / name,
        }
        if settings["target"] == "arc.jsonl":
            settings["target"] = args.out / "arc.jsonl"
            write_arc(args.out / "arc.jsonl")
        words = [word for option, value in settings.items() for word in (f"--{option}", str(value))]
        print("$ perturbjax caulking", *words, flush=True)
        if code := subprocess.run([sys.executable, "-m", "perturbjax", "caulking", *words, "--resume"]).returncode:
            sys.exit(code)  # the command has said why


if __name__ == "__main__":
    main()
