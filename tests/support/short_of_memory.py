"""A chunk of candidates with less memory than it takes, in a process of its own, because a limit cannot be lifted again.

Prints the candidates in flight that were asked for and those that fitted, and whether the results are those of one candidate at a time.
"""

import resource
from pathlib import Path

import jax
import numpy as np

from perturbjax.inference import Engine
from perturbjax.noise import Noise, Population, Rule
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh
from support.paths import FIXTURES
from support.toy import TEMPLATE, Toy

IN_FLIGHT = 1024
ROOM = 7 * 2**27
"""Bytes. 1024 candidates take 2.1 GiB of temporaries; a quarter of them fits for certain, and a half does not."""
RULES = (Rule("^(?!layers/attention/q/kernel)", None),)
"""Little noise: every halving compiles it anew."""


def main() -> None:
    model, task = load_model(str(FIXTURES / "tiny_qwen2")), Toy("choice")
    noise, mesh = Noise("rademacher", rules=RULES), make_mesh(jax.devices()[:1])
    engines = [Engine(model, task, noise, mesh, width, width, strategy="copy") for width in (1, IN_FLIGHT)]
    candidates = Population(seed=4, size=16, sigmas=(0.02, 0.1))[:]
    one_at_a_time = engines[0].run(candidates, engines[0].prepare(task.examples(), TEMPLATE))
    prepared = engines[1].prepare(task.examples(), TEMPLATE)
    engines[1].compiled(prepared)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    outputs = engines[1].run(candidates, prepared)
    assert outputs.log_probs is not None and one_at_a_time.log_probs is not None
    same = np.array_equal(outputs.scores, one_at_a_time.scores) and np.allclose(outputs.log_probs, one_at_a_time.log_probs, atol=1e-4)
    print(IN_FLIGHT, engines[1].in_flight, "equal" if same else "different")


if __name__ == "__main__":
    main()
