"""Run by ``test_mesh`` with 8 forced devices: the engine on every mesh against itself on one device. Prints one line a case:
the part of the file, ``ok`` or ``WRONG``, the case, and the largest difference of a log-probability."""

import jax
import numpy as np
import pytest

from perturbjax.inference import Engine
from perturbjax.inference.next_token import NextToken
from perturbjax.models.partition import partition
from perturbjax.noise import Noise, Rule
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh
from support.paths import FIXTURES
from support.toy import POPULATION, TEMPLATE, Toy, one_batch_size

MESHES = {"4x2": (8, 4, 2), "2x4": (8, 2, 4), "1x8": (8, 1, 8), "1x5": (5, 1, 5)}
"""Devices, data, model. Of the fixtures' 4 heads, 2 key heads, 384 tokens and ffn of 64, axes of 2 shard everything, 4 share key
heads, 8 leave attention whole, and 5 divide nothing: the vocabulary is padded and the ffn stays whole."""
TOLERANCE = 2e-5
UNEVEN = 7
"""Candidates: a number that divides by no axis."""

CHOICES = (
    ("tiny_llama3", "4x2", ("x", "y"), Noise(), "lazy"),
    ("tiny_llama3", "2x4", ("river of stone", "x"), Noise("rademacher", scale="rms"), "lazy"),
    ("tiny_qwen2", "1x5", ("river of stone", "x"), Noise("gaussian", scale="modular"), "copy"),
    ("tiny_qwen2", "2x4", ("x", "y"), Noise("rademacher", rank=2, rules=(Rule("norm", None),)), "low_rank"),
    ("tiny_gemma3", "4x2", ("river of stone", "x"), Noise("rademacher"), "lazy"),
    ("tiny_qwen3_moe", "2x4", ("river of stone", "x"), Noise("rademacher"), "lazy"),
    ("tiny_olmo2", "2x4", ("river of stone", "x"), Noise("rademacher"), "lazy"),
)
GENERATED = (("tiny_llama3", "2x4", Noise("rademacher"), "copy"),)


def mesh_of(name):
    devices, candidates, model = MESHES[name]
    assert devices == candidates * model
    return make_mesh(jax.devices()[:devices], model)


def compare(name, task, mesh, noise, strategy):
    """Whether a mesh, to which the weights come straight from their file, and one device agree, and how far log-probabilities are apart."""
    outputs = []
    for where, stored in ((make_mesh(jax.devices()[:1]), False), (mesh, True)):
        model = load_model(str(FIXTURES / name), stored=stored)
        engine = Engine(model, task, noise, where, chunk=UNEVEN, strategy=strategy)
        outputs.append(engine.run(POPULATION[:UNEVEN], engine.prepare(task.examples(), TEMPLATE)))
    one, other = outputs
    same = one.answers == other.answers and np.array_equal(one.scores, other.scores) and np.array_equal(one.tokens, other.tokens)
    if one.log_probs is None:
        told_apart, apart = len(set(one.answers)) > 1, 0.0
    else:
        told_apart = float(np.ptp(one.log_probs, axis=0).max()) > 100 * TOLERANCE
        apart = float(np.abs(one.log_probs - other.log_probs).max())
    return same and told_apart and apart < TOLERANCE and not other.nonfinite, apart


def choices():
    for name, mesh, choices, noise, strategy in CHOICES:
        good, apart = compare(name, Toy("choice", choices), mesh_of(mesh), noise, strategy)
        yield good, f"{name} {mesh} {noise.distribution} {noise.rank} {noise.scale} {strategy}", apart


def generated():
    for name, mesh, noise, strategy in GENERATED:
        good, _ = compare(name, Toy("generation"), mesh_of(mesh), noise, strategy)
        yield good, f"{name} {mesh} greedy {noise.distribution} {noise.rank} {strategy}", 0.0
    model, task = load_model(str(FIXTURES / "tiny_qwen2")), Toy("generation")
    draws = [Engine(model, task, Noise(), where, chunk=2) for where in (make_mesh(jax.devices()[:1]), mesh_of("1x5"))]
    one, other = (engine.sample(engine.prepare(task.examples(), TEMPLATE), 2, 1.0, 3).answers for engine in draws)
    yield one == other and one[0] != one[1], "tiny_qwen2 1x5 sampled", 0.0


def next_tokens():
    """What noise does to the next token, with a padded vocabulary whose logits lie on five devices."""
    found = []
    for where, stored in ((make_mesh(jax.devices()[:1]), False), (mesh_of("1x5"), True)):
        model, task = load_model(str(FIXTURES / "tiny_qwen2"), "float32", stored=stored), Toy("choice")
        measured = NextToken(model, task, task.examples(), TEMPLATE, where, chunk=2)
        found.append(measured.measure(POPULATION[:2], Noise(scale="rms")))
    one, other = found
    apart = max(float(np.abs(one.kl / other.kl - 1).max()), float(np.abs(one.hidden / other.hidden - 1).max()))
    yield apart < 1e-3 and np.array_equal(one.argmax, other.argmax) and one.argmax.any(), "tiny_qwen2 1x5 next token", apart


def layouts():
    """What is sharded where, as the docstring of ``MESHES`` says."""
    config = load_model(str(FIXTURES / "tiny_llama3")).config
    found = {size: partition(config, size) for size in (1, 2, 4, 8, 5)}
    kinds = {size: layout and (layout.attention, layout.mlp, layout.local(config).num_kv_heads) for size, layout in found.items()}
    yield kinds == {1: None, 2: (True, True, 1), 4: (True, True, 1), 8: (False, True, 2), 5: (False, False, 2)}, f"layouts {kinds}", 0.0


if __name__ == "__main__":
    # Half of the time is LLVM's otherwise, on programs that run for a moment; how they are partitioned comes before it, and is the same.
    one_batch_size(pytest.MonkeyPatch())
    for part in (layouts, choices, generated, next_tokens):
        for good, what, apart in part():
            print(part.__name__, "ok" if good else "WRONG", what, f"{apart:.1e}", flush=True)
