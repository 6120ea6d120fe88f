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

MESHES = {"8x1": (8, 8, 1), "4x2": (8, 4, 2), "2x4": (8, 2, 4), "1x8": (8, 1, 8), "1x5": (5, 1, 5)}
"""Devices, data, model. Of the fixtures' 4 heads, 2 key heads, 384 tokens and ffn of 64, axes of 2 shard everything, 4 share key
heads, 8 leave attention whole, and 5 divide nothing: the vocabulary is padded and the ffn stays whole."""
TOLERANCE = 2e-5
CHUNK, UNEVEN = 7, 9
"""Candidates of a chunk and of all: numbers that divide by no axis. Of the second chunk, most devices of "data" have none."""


def only(leaves: str) -> tuple[Rule, ...]:
    """Leaves that move where another case moves all of them."""
    return (Rule(f"^(?!{leaves})", None),)


SHARED_HEADS = only("embed|layers/attention/k|layers/mlp/down|norm")
"""By vocabulary, by key heads that devices share, by row, and on every device."""
CHOICES = (
    ("tiny_llama3", ("4x2",), ("a", "the"), Noise(), "lazy"),
    ("tiny_llama3", ("2x4",), ("river of stone", "x"), Noise("rademacher", scale="rms", rules=SHARED_HEADS), "lazy"),
    ("tiny_qwen2", ("1x5",), ("river of stone", "x"), Noise(scale="modular", rules=only("embed|layers/.*/q|norm")), "copy"),
    (
        "tiny_qwen2",
        ("2x4",),
        ("x", "y"),
        Noise("rademacher", rank=2, rules=only("embed|layers/attention/[ko]|layers/mlp/gate")),
        "low_rank",
    ),
    ("tiny_gemma3", ("4x2",), ("river of stone", "x"), Noise("rademacher", rules=only("layers/attention/[kq]_norm|layers/mlp/up")), "lazy"),
    ("tiny_qwen3_moe", ("2x4",), ("river of stone", "x"), Noise("rademacher", rules=only("layers/mlp/(router|up|down)")), "lazy"),
    ("tiny_olmo2", ("2x4", "8x1"), ("river of stone", "x"), Noise("rademacher", rules=only("layers/attention/([kq]_norm|v)")), "lazy"),
)
GENERATED = (("tiny_llama3", ("2x4", "8x1"), Noise("rademacher", rules=SHARED_HEADS), "copy"),)


def mesh_of(name):
    devices, candidates, model = MESHES[name]
    assert devices == candidates * model
    return make_mesh(jax.devices()[:devices], model)


def compare(name, task, meshes, noise, strategy):
    """Whether each mesh, to which the weights come straight from their file, and one device agree, and how far log-probabilities are
    apart."""
    outputs = []
    for where, stored in ((make_mesh(jax.devices()[:1]), False), *((mesh_of(mesh), True) for mesh in meshes)):
        model = load_model(str(FIXTURES / name), stored=stored)
        engine = Engine(model, task, noise, where, chunk=CHUNK, strategy=strategy)
        outputs.append(engine.run(POPULATION[:UNEVEN], engine.prepare(task.examples(), TEMPLATE)))
    one, *others = outputs
    for mesh, other in zip(meshes, others, strict=True):
        same = one.answers == other.answers and np.array_equal(one.scores, other.scores) and np.array_equal(one.tokens, other.tokens)
        if one.log_probs is None:
            told_apart, apart = len(set(one.answers)) > 1, 0.0
        else:
            told_apart = float(np.ptp(one.log_probs, axis=0).max()) > 100 * TOLERANCE
            apart = float(np.abs(one.log_probs - other.log_probs).max())
        what = f"{name} {mesh} {noise.distribution} {noise.rank} {noise.scale} {strategy}"
        yield same and told_apart and apart < TOLERANCE and not other.nonfinite, what, apart


def choices():
    for name, meshes, choices, noise, strategy in CHOICES:
        yield from compare(name, Toy("choice", choices), meshes, noise, strategy)


def generated():
    for name, meshes, noise, strategy in GENERATED:
        yield from compare(name, Toy("generation"), meshes, noise, strategy)
    model, task = load_model(str(FIXTURES / "tiny_qwen2")), Toy("generation")
    draws = [Engine(model, task, Noise(), where, chunk=2) for where in (make_mesh(jax.devices()[:1]), mesh_of("1x5"))]
    one, other = (engine.sample(engine.prepare(task.examples(), TEMPLATE), 2, 1.0, 3).answers for engine in draws)
    yield one == other and one[0] != one[1], "tiny_qwen2 1x5 sampled", 0.0


def next_tokens():
    """What noise does to the next token, with a padded vocabulary whose logits lie on five devices."""
    found, noise = [], Noise(scale="rms", rules=only("embed|layers/attention/q|norm"))
    for where, stored in ((make_mesh(jax.devices()[:1]), False), (mesh_of("1x5"), True)):
        model, task = load_model(str(FIXTURES / "tiny_qwen2"), "float32", stored=stored), Toy("choice")
        measured = NextToken(model, task, task.examples(), TEMPLATE, where, chunk=2)
        found.append(measured.measure(POPULATION[:2], noise))
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
