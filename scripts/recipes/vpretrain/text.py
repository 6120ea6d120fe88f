"""V-Pretraining on a real model: SmolLM2-135M-Instruct reads further text, steered by questions that it never trains on.

    python scripts/recipes/vpretrain/text.py --out /tmp/text
    python scripts/recipes/vpretrain/text.py --out /tmp/science --pair science

Pair mathematics: the corpus are problems and solutions of the MATH test sets, but for the 500 of MATH-500; feedback are questions and
answers of GSM8K. Pair science: questions of MMLU and their right answers; feedback is ARC-Easy. Other rows of the feedback's task are the
test. LoRA on all layers. Arms: step 0, plain, value by dot and by cosine, a random direction, uniform targets, self-distillation, oracle
targets, fine-tuning on the feedback; all at the same steps and batches, and value by dot once more with as many steps as take the seconds
of plain. Reported for each: nats of the answers of the test, how many questions are answered right, nats of stories (general text).
The folder holds the runs, a seed each; what is there is continued or read.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from perturbjax.records import from_json
from perturbjax.report.accounting import paired_bootstrap, student_half
from perturbjax.runs.files import read_json
from perturbjax.tasks.mmlu import SUBJECTS as MMLU
from perturbjax.tasks.sources import Source
from perturbjax.vpretrain.results import START, Measured, read_results

SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
STORIES = Source("HellaSwag validation", "hf_datasets/hellaswag/none/validation", "Rowan/hellaswag", None, "validation")
FOLDER = "hf_datasets/hails/mmlu_no_train"
CONTROLS = "plain,random,uniform,self,oracle,fine_tuning"
FEW = "plain,random,uniform"
"""Controls of a further seed: what would explain the value's gain away."""
FEEDBACK = {"mathematics": "gsm8k", "science": "arc_easy"}
"""Pair -> task of the feedback."""
ROWS = {
    START: "step 0",
    "plain": "plain",
    "value": "value (dot)",
    "random": "random direction",
    "uniform": "uniform",
    "self": "self-distillation",
    "oracle": "oracle target",
    "fine_tuning": "fine-tuning on the feedback",
}
"""Mode of the first run -> row of the table."""
ROW_TOKENS = {"mathematics": 256, "science": 128}
"""Solutions are longer than answers."""


def mathematics(subject: str) -> list[dict[str, str]]:
    folder = f"oe_eval_tasks/minerva_math_{subject}/gold_bpb_0shot"
    return Source(f"MATH, {subject}", folder, "EleutherAI/hendrycks_math", None, "test").rows()


def corpus_rows(pair: str) -> list[dict[str, str]]:
    """Prompts and responses."""
    if pair == "mathematics":
        kept = {row["problem"] for row in mathematics("500")}
        rows = [row for subject in SUBJECTS for row in mathematics(subject) if row["problem"] not in kept]
        return [{"prompt": row["query"], "response": f" {row['solution']}"} for row in rows]
    rows = [row for subject in MMLU for row in Source(f"MMLU, {subject}", f"{FOLDER}/{subject}/test", "cais/mmlu", subject, "test").rows()]
    return [{"prompt": f"Question: {row['question']}\nAnswer:", "response": f" {row['choices'][row['answer']]}"} for row in rows]


def write_texts(folder: Path, pair: str, seed: int) -> tuple[Path, Path]:
    """The corpus, in an order of the seed's, and stories that are only measured."""
    rows = corpus_rows(pair)
    corpus, stories = folder / f"{pair}.jsonl", folder / "stories.jsonl"
    with corpus.open("w") as file:
        for number in np.random.default_rng(seed).permutation(len(rows)):
            file.write(json.dumps(rows[number]) + "\n")
    with stories.open("w") as file:
        for row in STORIES.rows()[:64]:
            file.write(json.dumps({"text": f"{row['ctx'].strip()} {row['endings'][int(row['label'])].strip()}"}) + "\n")
    return corpus, stories


def pretrain(out: Path, pair: str, steps: int, seed: int, texts: tuple[Path, Path], test: int, *options: str) -> None:
    """One ``perturbjax vpretrain``, continued where it stands."""
    settings = {
        "corpus": texts[0],
        "general": texts[1],
        "feedback": FEEDBACK[pair],
        "train": "lora",
        "steps": steps,
        "seed": seed,
        "out": out,
    }
    settings |= {
        "batch-rows": 4,
        "row-tokens": ROW_TOKENS[pair],
        "learning-rate": 2e-4,
        "every": max(10, steps // 2),
        "meta-period": 2,
        "feedback-rows": 4,
    }
    settings |= {"test-examples": test, "designer-layers": 2, "designer-learning-rate": 1e-3}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "perturbjax", "vpretrain", *words, *options, "--resume"]
    print("$", " ".join(map(os.path.basename, command[2:4])), " ".join(command[4:]), flush=True)
    if code := subprocess.run(command).returncode:
        raise SystemExit(code)  # the command has said why


def measured(run: Path, names: Mapping[str, str]) -> dict[str, Measured]:
    """Row of the table -> what was measured, of a run's arms."""
    return {row: from_json(Measured, read_json(run / "arms" / f"{mode}.json"), str(run)) for mode, row in names.items()}


def arms_of(folder: Path, pair: str, steps: int, seed: int, test: int, few: bool) -> dict[str, Measured]:
    """All arms of one seed; with ``few``, step 0, value and ``FEW``."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = write_texts(folder, pair, seed)
    if few:
        pretrain(folder / "few", pair, steps, seed, texts, test, "--controls", FEW)
        return measured(folder / "few", {mode: ROWS[mode] for mode in (START, "value", *FEW.split(","))})
    pretrain(folder / "dot", pair, steps, seed, texts, test, "--controls", CONTROLS)
    pretrain(folder / "cosine", pair, steps, seed, texts, test, "--controls", "", "--similarity", "cosine")
    results = read_results(folder / "dot" / "results.json")
    plain, own = results.arm("plain"), results.own
    assert plain is not None
    shorter = max(10, round(steps * plain.seconds / own.seconds))
    pretrain(folder / "same-seconds", pair, shorter, seed, texts, test, "--controls", "")
    found = measured(folder / "dot", ROWS)
    found |= measured(folder / "cosine", {"value": "value (cosine)"})
    print(f"seed {seed}: plain took {plain.seconds:.0f} s, in which value (dot) takes {shorter} of {steps} steps", flush=True)
    return found | measured(folder / "same-seconds", {"value": "value (dot), in the seconds of plain"})


def report(seeds: Sequence[Mapping[str, Measured]], feedback: str, seed: int) -> None:
    """Each row over the seeds that have it. Test rows of a seed are paired with those of its plain arm and of its value by dot, and the
    bootstrap is over them: 95 % intervals."""

    def less(name: str, other: str) -> str:
        """How many nats the one takes less than the other."""
        having = [(found[name], found[other]) for found in seeds if name in found and other in found]
        one, two = (np.concatenate([arm.losses[feedback] for arm in arms]) for arms in zip(*having, strict=True))
        low, high = paired_bootstrap(two, one, seed)
        return f"{(two - one).mean():7.3f} ({low:6.3f} to {high:6.3f})"

    own = ROWS["value"]
    print(f"{'':38}{'seeds':>5}{'answer, nats':>14}   {'plain - it':26}{'it - value':26}{'right':>7}{'stories, nats':>15}")
    for name in seeds[0]:
        of_row = [found[name] for found in seeds if name in found]
        losses = np.concatenate([arm.losses[feedback] for arm in of_row])
        against_plain = less(name, "plain") if name != "plain" else ""
        over_value = less(own, name) if name != own else ""
        right = np.mean([np.mean(each.scores[feedback]) for each in of_row])
        general = np.mean([each.general for each in of_row if each.general is not None])
        print(f"{name:38}{len(of_row):5}{losses.mean():14.3f}   {against_plain:26}{over_value:26}{right:7.1%}{general:15.3f}")


def over_trainings(seeds: Sequence[Mapping[str, Measured]], feedback: str) -> None:
    """What value by dot is better by in each training, and Student's t over them: 95 % intervals."""
    print("value (dot), over trainings, is better than")
    for name in seeds[0]:
        having = [(found[name], found[ROWS["value"]]) for found in seeds if name in found]
        if len(having) < 2 or name == ROWS["value"]:
            continue
        gains = np.array([np.mean(other.losses[feedback]) - np.mean(own.losses[feedback]) for other, own in having])
        mean, half = gains.mean(), student_half(gains)
        print(f"{name:20}{', '.join(f'{gain:.3f}' for gain in gains):24}mean {mean:.3f} ({mean - half:.3f} to {mean + half:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; continued when it is there")
    parser.add_argument("--pair", choices=tuple(FEEDBACK), default="mathematics", help="corpus and feedback (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="so that several processes can share the seeds of a folder")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--few", type=int, default=0, metavar="SEEDS", help=f"so many further seeds, of which value and {FEW} alone are trained"
    )
    parser.add_argument("--test", type=int, default=64, help="test questions")
    args = parser.parse_args()
    for name, least in (("seeds", 1), ("first_seed", 0), ("few", 0), ("steps", 1), ("test", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {least} is required")
    last = args.first_seed + args.seeds
    seeds = range(args.first_seed, last + args.few)
    found = [arms_of(args.out / f"seed-{seed}", args.pair, args.steps, seed, args.test, seed >= last) for seed in seeds]
    report(found, FEEDBACK[args.pair], seed=0)
    over_trainings(found, FEEDBACK[args.pair])


if __name__ == "__main__":
    main()
