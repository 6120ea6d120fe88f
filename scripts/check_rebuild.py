#!/usr/bin/env python
"""Rebuild the members of a finished run from ensemble.json, in fresh processes, and score them again.

    .venv/bin/python scripts/check_rebuild.py RUN [--members 8]

Each row of the table is a process of its own: chunks of 1, 3 and 8 candidates on one device, and 8 on eight (forced host) devices. The
scores must equal the run's committed score matrix bit for bit, and the extracted answers must be the same in all of them. Exit code 1 if
not.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from inputs import at_least, directory, exit_code

LAYOUTS = ((1, 1), (3, 1), (8, 1), (8, 8))


def score(run: Path, members: int, chunk: int, devices: int) -> None:
    """In its own process: print whether the scores are those of the run, and a digest of the answers."""
    import jax
    import numpy as np

    from perturbjax.inference import Engine
    from perturbjax.randopt import read_scores
    from perturbjax.randopt.setup import reopen_ensemble
    from perturbjax.randopt.stages import prepare_rounds
    from perturbjax.runs.console import Console
    from perturbjax.sharding import make_mesh

    parts, ensemble = reopen_ensemble(run, Console().note)
    rebuilt = jax.tree.map(lambda leaf: leaf[:members], ensemble.candidates)
    engine = Engine(parts.model, parts.task, ensemble.noise, make_mesh(jax.devices()[:devices]), chunk=chunk)
    # In the slices of the run's race: rows packed with other neighbors are summed in another order.
    slices = prepare_rounds(parts, engine, engine.prepare(parts.splits.search, parts.template))
    outputs = [engine.run(rebuilt, prepared) for prepared in slices]
    found = read_scores(run)
    committed = found.scores[np.searchsorted(found.index, np.asarray(rebuilt.index))]
    scores = np.concatenate([part.scores for part in outputs], axis=1)
    digest = hashlib.sha256(json.dumps([part.answers for part in outputs]).encode()).hexdigest()[:16]
    print(json.dumps({"equal": scores.tobytes() == committed.tobytes(), "members": len(committed), "answers": digest}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=directory)
    parser.add_argument("--members", type=at_least(1), default=8)
    parser.add_argument("--layout", type=at_least(1), nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layout:
        score(options.run, options.members, *options.layout)
        return 0
    print(f"{'chunk':>5} {'devices':>7} {'members':>7}  {'scores':<22} answers")
    found = set()
    for chunk, devices in LAYOUTS:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        arguments = [str(options.run), "--members", str(options.members), "--layout", str(chunk), str(devices)]
        child = subprocess.run(
            [sys.executable, __file__, *arguments], env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True, check=False
        )
        if child.returncode:
            return child.returncode
        row = json.loads(child.stdout.splitlines()[-1])
        equal = "equal to the run's" if row["equal"] else "DIFFERENT"
        print(f"{chunk:>5} {devices:>7} {row['members']:>7}  {equal:<22} {row['answers']}", flush=True)
        found.add((row["equal"], row["answers"]))
    return 0 if len(found) == 1 and found.pop()[0] else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
