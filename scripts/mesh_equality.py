"""Does a search give the same on every mesh? Scores one population on several meshes of forced CPU devices, and on two processes.

    python scripts/mesh_equality.py --model smollm2-135m --task sst2

Every row is a run of its own, compared with one device: the candidates' keys and sigmas, their scores, the best K, and how far the
log-probabilities of the choices are apart (sums over "model" add in another order).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from inputs import at_least, exit_code

from perturbjax.noise import DISTRIBUTIONS
from perturbjax.noise.spec import SCALES

MESHES = (("1x1", 1, 1), ("8x1", 1, 8), ("4x2", 1, 8), ("2x4", 1, 8), ("8x1", 2, 4), ("4x2", 2, 4), ("2x4", 2, 4))
"""Mesh, processes, devices of each."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="sst2", help="a task of choices")
    parser.add_argument("--noise", default="gaussian", choices=tuple(DISTRIBUTIONS))
    parser.add_argument("--scale", default="absolute", choices=SCALES)
    parser.add_argument("--sigmas", type=numbers, default="0.002,0.005")
    parser.add_argument("--population", type=at_least(1), default=7)
    parser.add_argument("--examples", type=at_least(1), default=8)
    parser.add_argument("--top-k", type=at_least(1), default=3)
    for name in ("--run", "--mesh", "--coordinator"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--num-processes", "--process-id"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.top_k > options.population:
        parser.error(f"--top-k {options.top_k}: at most the {options.population} of --population are required")
    return options


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def score(options: argparse.Namespace) -> None:
    """One row: scores the population on one mesh, and writes what came of it to ``options.run``."""
    from perturbjax import sharding
    from perturbjax.cluster.distributed import is_main, join
    from perturbjax.errors import InputError
    from perturbjax.inference import Engine
    from perturbjax.noise import Noise, Population
    from perturbjax.pretrained import load_model
    from perturbjax.scoring import top_k
    from perturbjax.tasks import load_task

    if options.coordinator:
        join(options.coordinator, options.num_processes, options.process_id)
    task, model = load_task(options.task), load_model(options.model, stored=True)
    if task.kind != "choice":
        raise InputError(f"--task {options.task}: a task of choices is required")
    mesh = sharding.make_mesh(model=int(options.mesh.split("x")[1]))
    engine = Engine(model, task, Noise(options.noise, scale=options.scale), mesh, chunk=options.population, strategy="lazy")
    candidates = Population(seed=0, size=options.population, sigmas=options.sigmas)[:]
    outputs = engine.run(candidates, engine.prepare(task.examples()[: options.examples], task.templates[0]))
    assert outputs.log_probs is not None
    if not is_main():
        return
    keys = np.concatenate([np.asarray(candidates.key_data, np.float64), np.asarray(candidates.sigma, np.float64)[:, None]], axis=1)
    best = top_k(outputs.scores.mean(axis=1), options.top_k)
    np.savez(options.run, candidates=keys, scores=outputs.scores, members=best, log_probs=outputs.log_probs)


def row(options: argparse.Namespace, mesh: str, processes: int, devices: int, file: Path) -> dict[str, np.ndarray]:
    settings = {name: value for name, value in vars(options).items() if value is not None}
    settings |= {"mesh": mesh, "run": str(file), "sigmas": ",".join(map(str, options.sigmas))}
    command = [sys.executable, __file__, *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items())]
    if processes > 1:
        launch = Path(__file__).with_name("launch_local.py")
        command = [sys.executable, str(launch), "--processes", str(processes), "--devices", str(devices), "--", *command]
    flags = f"--xla_force_host_platform_device_count={devices}" if processes == 1 else ""
    # gloo says on stdout who is connected to whom; errors go to stderr.
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)
    return dict(np.load(file))


def main() -> int:
    options = arguments()
    if options.run:
        score(options)
        return 0
    print(
        f"{options.model}, {options.task}, {options.population} candidates, {options.examples} examples, {options.noise}, {options.scale}"
    )
    best = f"best {options.top_k}"
    print(f"{'mesh':<5} {'processes x devices':<20} {'candidates':<11} {'scores':<7} {best:<7} log-probability apart by")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, np.ndarray] = {}
        for number, (mesh, processes, devices) in enumerate(MESHES):
            found = row(options, mesh, processes, devices, Path(folder) / f"{number}.npz")
            first = first or found
            same = [np.array_equal(found[name], first[name]) for name in ("candidates", "scores", "members")]
            good &= all(same)
            said = ["equal" if equal else "DIFFER" for equal in same]
            apart = np.abs(found["log_probs"] - first["log_probs"]).max()
            print(f"{mesh:<5} {f'{processes} x {devices}':<20} {said[0]:<11} {said[1]:<7} {said[2]:<7} {apart:.1e}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
