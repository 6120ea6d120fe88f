"""Too little memory for a chunk: fewer candidates in flight, the same results."""

import os
import subprocess
import sys

import jax
import pytest
from support.paths import FIXTURES, SUPPORT
from support.toy import TEMPLATE, Toy

from perturbjax.inference import Engine
from perturbjax.noise import Candidate, Noise
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh

PROGRAM = SUPPORT / "short_of_memory.py"


def test_a_chunk_that_does_not_fit_is_scored_with_fewer_candidates_in_flight():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    asked, fitted, verdict = done.stdout.split()
    assert 1 <= int(fitted) <= int(asked) // 2 and verdict == "equal", done.stdout
    said = [line for line in done.stderr.splitlines() if "out of memory with" in line]
    assert said[0].startswith(f"out of memory with {asked} candidates in flight, going on with {int(asked) // 2} (RESOURCE_EXHAUSTED"), (
        done.stderr
    )
    assert f"going on with {fitted} " in said[-1]


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.", MemoryError, "one candidate at a time does not fit.*deal the model"),
        ("INTERNAL: something else", jax.errors.JaxRuntimeError, "something else"),
    ],
)
def test_what_halving_cannot_mend_is_raised(monkeypatch, caplog, reason, kind, message):
    engine = Engine(load_model(str(FIXTURES / "tiny_qwen2")), Toy("choice"), Noise(), make_mesh(jax.devices()[:1]), 4, in_flight=4)
    prepared, tried = engine.prepare(Toy("choice").examples(), TEMPLATE), []

    def fail(*order):
        tried.append(engine.in_flight)
        raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr(engine, "_program", fail)
    with pytest.raises(kind, match=message):
        engine.run(Candidate.base(4), prepared)
    assert tried == ([4, 2, 1] if kind is MemoryError else [4])
    assert len(caplog.records) == len(tried) - 1
