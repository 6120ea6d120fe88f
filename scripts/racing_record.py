"""Scores of every candidate on every example of one split, in full: what racing rules are compared on without running the model again.

    python scripts/racing_record.py --task sst2 --out runs/racing/sst2-search.npz
    python scripts/racing_record.py --task sst2 --split test --members members.json --out runs/racing/sst2-test.npz

Splits, population and prompts are those of `perturbjax randopt` with the same settings. The record is saved after every chunk; the same
command goes on where it stopped. Only choice tasks: their answers are kept as numbers of choices.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from inputs import at_least, exit_code

from perturbjax.inference.packing import common_prefix
from perturbjax.randopt import Config, Data, Search
from perturbjax.randopt.flow import run_base
from perturbjax.randopt.setup import load_parts, make_engine
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--population", type=at_least(1), default=256)
    parser.add_argument("--examples", type=at_least(1), default=128, help="of the search split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("search", "test"), default="search")
    parser.add_argument("--members", type=Path, help="JSON list of the candidates to run; all when left out")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    search = Search(population=options.population, top_k=min(16, options.population), racing="off", seed=options.seed)
    config = Config(data=Data(task=options.task, search_examples=options.examples), search=search)
    parts = load_parts(config, Console().note)
    engine = make_engine(parts)
    examples = getattr(parts.splits, options.split)
    prepared = engine.prepare(examples, parts.template)
    wanted = json.loads(options.members.read_text()) if options.members else list(range(search.population))
    if options.out.exists():
        with np.load(options.out) as saved:
            record = dict(saved)
    else:
        base = run_base(engine, prepared)
        record = {
            "identity": np.array(json.dumps(dict(parts.identity))),
            "base_scores": base.scores[0],
            "scores": np.full((search.population, len(examples)), np.nan, np.float32),
            "answers": np.full((search.population, len(examples)), -1, np.int8),
            "seconds": np.float64(0),
            **token_counts(engine, prepared),
        }
    if json.loads(str(record["identity"])) != json.loads(json.dumps(dict(parts.identity))):
        raise SystemExit(f"--out {options.out}: the record of other settings")
    for start in range(0, len(wanted), engine.chunk):
        part = [i for i in wanted[start : start + engine.chunk] if np.isnan(record["scores"][i]).any()]
        if not part:
            continue
        started = time.perf_counter()
        outputs = engine.run(parts.population[part], prepared)
        record["scores"][part] = outputs.scores
        for i, row in zip(part, outputs.answers, strict=True):
            record["answers"][i] = [-1 if a is None else e.choices.index(a) for a, e in zip(row, examples, strict=True)]
        record["seconds"] = record["seconds"] + (time.perf_counter() - started)
        write_atomically(options.out, lambda file: np.savez_compressed(file, **record))
        print(f"{options.task} {options.split}: {start + len(part)}/{len(wanted)}, {float(record['seconds']):.0f} s", flush=True)


def token_counts(engine, prepared) -> dict[str, np.ndarray]:
    """What a slice of the examples costs: its own tokens, and the prefix that all prompts share."""
    tokenizer, task = engine.model.tokenizer, engine.task
    prompts = [task.prompt(example, prepared.template) for example in prepared.examples]
    ids = tokenizer.encode_prompts(prompts)
    prefix = common_prefix(ids)
    own = [len(i) - prefix + sum(len(tokenizer.encode(c)) - 1 for c in p.choices) for i, p in zip(ids, prompts, strict=True)]
    return {"prefix_tokens": np.array(prefix), "own_tokens": np.array(own), "gold": gold_choices(prepared)}


def gold_choices(prepared) -> np.ndarray:
    """Number of the right choice of each example."""
    return np.array([list(example.choices).index(example.answer) for example in prepared.examples], np.int8)


if __name__ == "__main__":
    sys.exit(exit_code(main))
