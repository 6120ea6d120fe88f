"""The modular scale: norms against draws, and every module's part of a step against the paper's formula, module by module."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES

from perturbjax.noise import Block, Noise, Population, Rule, Slice, perturb
from perturbjax.noise.modular import factors
from perturbjax.noise.norms import POWER_STEPS, largest_normal, largest_sign, spectral
from perturbjax.noise.spec import scales
from perturbjax.pretrained import load_model
from perturbjax.tree import leaf_paths

D, F, V, L = 192, 384, 2000, 3
SHAPES = {
    "embed": {"embedding": (V, D)},
    "layers": {
        "attention": {"qkv": {"kernel": (L, D, 3 * D), "bias": (L, 3 * D)}, "o": {"kernel": (L, D, D)}},
        "attention_norm": {"scale": (L, D)},
        "mlp": {"gate_up": {"kernel": (L, D, 2 * F)}, "down": {"kernel": (L, F, D)}},
    },
    "norm": {"scale": (D,)},
    "head": {"kernel": (D, V)},
}
PARAMS = jax.tree.map(lambda shape: jnp.zeros(shape), SHAPES, is_leaf=lambda node: isinstance(node, tuple))
TOTAL = 1 + 0.5 + 0.5 + 1 + 0.1
# Path -> the mass of one of its tensors: that of the kind, over layers, over modules, over tensors.
MASSES = {
    "embed/embedding": 1.0,
    "head/kernel": 1.0,
    "layers/attention/qkv/kernel": 0.5 / L * 3 / 4 / 2,
    "layers/attention/qkv/bias": 0.5 / L * 3 / 4 / 2,
    "layers/attention/o/kernel": 0.5 / L * 1 / 4,
    "layers/mlp/gate_up/kernel": 0.5 / L * 2 / 3,
    "layers/mlp/down/kernel": 0.5 / L * 1 / 3,
    "layers/attention_norm/scale": 0.1 / (L + 1),
    "norm/scale": 0.1 / (L + 1),
}


def power_iteration(matrix):
    v = np.ones(matrix.shape[1]) / math.sqrt(matrix.shape[1])
    for _ in range(POWER_STEPS):
        v = matrix.T @ (matrix @ v)
        v /= np.linalg.norm(v)
    return np.linalg.norm(matrix @ v)


def norm(path, tensor):
    """The norm of one tensor of a module, as the paper defines it."""
    if tensor.ndim == 1:
        return np.abs(tensor).max()
    return np.linalg.norm(tensor, axis=1).max() if path.startswith("embed") else power_iteration(tensor)


GAUSSIAN = Noise(scale="modular").of_leaf
NOISES = [Noise(scale="modular"), Noise("rademacher", scale="modular"), Noise(rank=2, scale="modular", stacked="^layers/")]


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_every_tensor_of_a_step_has_its_part_of_R(noise):
    r = 0.16
    step = leaf_paths(perturb(PARAMS, Population(0, 1, (r,))[0], noise))
    assert step.keys() == MASSES.keys()
    for path, leaf in step.items():
        tensors = np.asarray(leaf).reshape(-1, *leaf.shape[1:]) if path.startswith("layers/") else np.asarray(leaf)[None]
        found = np.array([norm(path, tensor) for tensor in tensors])
        # Vectors are divided by their own largest element; single draws of small matrices differ by a few percent.
        expected = r * MASSES[path] / TOTAL
        tolerance = 1e-6 if tensors.ndim == 2 else 0.15 if noise.rank else 0.05
        np.testing.assert_allclose(found, expected, rtol=tolerance, err_msg=path)


def test_the_parts_of_all_modules_are_one_step():
    leaves = leaf_paths(PARAMS)
    parts = 0.0
    for path, factor in factors(leaves, Noise("rademacher", scale="modular").of_leaf).items():
        shape = leaves[path].shape
        copies = L if path.startswith("layers/") else 1
        vector = len(shape) == 1 + path.startswith("layers/")
        size = 1.0 if vector else math.sqrt(D) if path.startswith("embed") else spectral(*shape[-2:])
        parts += copies * factor * size
    assert parts == pytest.approx(1)


def test_expected_norms_are_those_of_draws():
    rng = np.random.default_rng(0)
    for count, dims, draws, tolerance in ((1, 1, 4000, 0.05), (300, 1, 4000, 0.01), (1000, 64, 30, 0.01), (3, 5, 4000, 0.01)):
        found = np.mean([np.linalg.norm(rng.standard_normal((count, dims)), axis=1).max() for _ in range(draws)])
        assert largest_normal(count, dims) == pytest.approx(found, rel=tolerance)
    assert largest_sign(1000, 64) == 8
    for rows, columns in ((300, 300), (300, 900), (900, 300)):
        for draw in (rng.standard_normal, lambda shape: rng.integers(0, 2, shape) * 2.0 - 1):
            found = np.mean([power_iteration(draw((rows, columns))) for _ in range(8)])
            assert spectral(rows, columns) == pytest.approx(found, rel=0.01)


def test_single_draws_at_the_size_of_a_model_are_near_what_is_expected():
    """Relative standard deviations; NOTES.md states them."""
    rng = np.random.default_rng(1)
    rows = np.sqrt(rng.chisquare(576, (100, 49_152)).max(axis=1)) / largest_normal(49_152, 576)
    matrices = np.array([power_iteration(rng.standard_normal((576, 1536), dtype=np.float32)) for _ in range(100)]) / spectral(576, 1536)
    vectors = np.abs(rng.standard_normal((2000, 576))).max(axis=1) / largest_normal(576, 1)
    for found, deviation in ((rows, 0.008), (matrices, 0.0087), (vectors, 0.10)):
        assert found.std(ddof=1) == pytest.approx(deviation, rel=0.3) and abs(found.mean() - 1) < deviation


def test_the_published_step_of_qwen_lies_in_the_embedding():
    """R = 0.16 on Qwen2.5-1.5B: about 1.8e-3 an element of the embedding, 5e-6 of a matrix."""
    d, f, kv, layers = 1536, 8960, 256, 28
    sizes = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d)}
    shapes = {"embed": {"embedding": (151_936, d)}, "norm": {"scale": (d,)}}
    shapes["layers"] = {
        "attention": {name: {"kernel": (layers, *shape)} for name, shape in sizes.items()},
        "mlp": {"gate": {"kernel": (layers, d, f)}, "up": {"kernel": (layers, d, f)}, "down": {"kernel": (layers, f, d)}},
        "attention_norm": {"scale": (layers, d)},
        "mlp_norm": {"scale": (layers, d)},
    }
    leaves = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16), shapes, is_leaf=lambda node: isinstance(node, tuple))
    found = scales(leaves, Noise(scale="modular"))
    step = {path: 0.16 * float(factor) for path, factor in found.items()}
    assert 1.6e-3 < step["embed/embedding"] < 2.0e-3
    assert 3e-6 < step["layers/attention/q/kernel"] < 7e-6
    squared = {path: step[path] ** 2 * math.prod(leaf.shape) for path, leaf in leaf_paths(leaves).items()}
    assert squared["embed/embedding"] > 0.999 * sum(squared.values())


def test_a_rule_that_excludes_a_group_changes_no_other():
    whole = scales(PARAMS, Noise(scale="modular"))
    part = scales(PARAMS, Noise(scale="modular", rules=(Rule("embed|head", None),)))
    assert part == {path: factor for path, factor in whole.items() if path in part} and len(part) == len(whole) - 2
    assert scales(PARAMS, Noise(rules=(Rule("head", "modular"),)))["head/kernel"] == whole["head/kernel"]


def test_unrolled_layers_are_stacked_ones():
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], PARAMS["layers"]) for i in range(L)]
    unrolled = factors(leaf_paths(PARAMS | {"layers": layers}), GAUSSIAN)
    for path, factor in factors(leaf_paths(PARAMS), GAUSSIAN).items():
        assert unrolled[path.replace("layers/", "layers/1/")] == pytest.approx(factor)


def test_every_family_has_factors():
    for name in ("tiny_llama_tied", "tiny_qwen2", "tiny_qwen3_moe", "tiny_gemma3", "tiny_olmo2"):
        leaves = leaf_paths(load_model(str(FIXTURES / name)).params)
        found = factors(leaves, GAUSSIAN)
        assert found.keys() == leaves.keys() and all(0 < factor < 1 for factor in found.values())
    assert factors({"w": jnp.ones((2, 3)), "n": jnp.int32(1)}, GAUSSIAN).keys() == {"w"}


def test_a_device_has_its_block_of_a_unit_vector():
    noise, key = Noise(scale="modular"), jnp.array([3, 4], jnp.uint32)
    leaf = noise.of_leaf("layers/attention/qkv/bias", (L, 12))
    whole = leaf.drawn.values(key, Block((L, 12)))
    np.testing.assert_array_equal(jnp.abs(whole).max(axis=1), 1)
    for part in (Slice(4, 4), jnp.array([11, 0, 5])):
        found = leaf.drawn.values(key, Block((L, 12)).take(0, Slice(1, 2)).take(1, part))
        at = part if not isinstance(part, Slice) else jnp.arange(part.start, part.start + part.size)
        np.testing.assert_array_equal(found, whole[1:3][:, at])
