"""The vision transformer against a loop over its layers in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from perturbjax import InputError
from perturbjax.caulking import Fitting, Method, run_grid
from perturbjax.models.adapters import VIT_BLOCK_ENDS, VIT_PROJECTIONS, Bottleneck, LoRA
from perturbjax.models.vit import ViTConfig
from perturbjax.tree import fingerprint

CONFIG = ViTConfig(image=16, patch=4, hidden=12, layers=3, heads=2)
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(lambda leaf: leaf + RNG.normal(0, 0.1, leaf.shape).astype(np.float32), CONFIG.init(0))


def gelu(x):
    """The approximation by tanh, which is jax's."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normed(x, layer):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def dense(x, layer):
    """With LoRA and a bottleneck, where the layer has them beside its kernel."""
    y = x @ layer["kernel"] + layer["bias"]
    if "lora_a" in layer:
        y = y + x @ layer["lora_a"] @ layer["lora_b"]
    if "adapter_up" in layer:
        y = y + gelu(y @ layer["adapter_down"] + layer["adapter_down_bias"]) @ layer["adapter_up"] + layer["adapter_up_bias"]
    return y


def naive(image, mask, positions, params=PARAMS):
    """One image, patch by patch and layer by layer."""
    side, p = len(image), CONFIG.patch
    places = [(row, column) for row in range(0, side, p) for column in range(0, side, p)]
    x = np.stack([dense(image[r : r + p, c : c + p].ravel(), params["embed"]) for r, c in places])
    x = (1 - mask[:, None]) * x + mask[:, None] * params["mask_token"] + positions.reshape(len(places), -1)
    x = np.concatenate([params["class_token"][None], x])
    for number in range(CONFIG.layers):
        layer = jax.tree.map(lambda leaf, number=number: np.asarray(leaf[number]), params["layers"])
        q, k, v = np.split(dense(normed(x, layer["attention_norm"]), layer["qkv"]), 3, axis=-1)
        heads = []
        for h in np.split(np.arange(CONFIG.hidden), CONFIG.heads):
            heads.append(softmax(q[:, h] @ k[:, h].T / np.sqrt(len(h)), axis=-1) @ v[:, h])
        x = x + dense(np.concatenate(heads, axis=-1), layer["o"])
        x = x + dense(gelu(dense(normed(x, layer["mlp_norm"]), layer["up"])), layer["down"])
    return normed(x, params["norm"])


@pytest.mark.parametrize("side", [16, 8])
def test_the_layers_are_those_of_a_loop(side):
    images, mask = RNG.normal(size=(2, side, side, 3)).astype(np.float32), RNG.random((2, (side // 4) ** 2)).astype(np.float32)
    positions = PARAMS["positions"]
    if side == 8:  # halved by the triangle filter, whose weights 1, 3, 3, 1 are divided by those inside the grid
        weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
        positions = np.einsum("ij,kl,jld->ikd", weights, weights, positions)
    found = jax.jit(lambda images, mask: CONFIG.build(PARAMS)(images, mask))(images, mask)
    for number in range(2):
        expected = naive(images[number], mask[number], positions)
        np.testing.assert_allclose(found[0][number], expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1][number], expected[1:], rtol=1e-4, atol=1e-5)


def test_derivatives_of_the_last_layers_are_those_of_all():
    """Early parameters are constants; derivatives by the mask go through all layers."""
    images, mask = jnp.asarray(RNG.normal(size=(1, 8, 8, 3)), jnp.float32), jnp.full((1, 4), 0.3)

    def slopes(kernel, mask, differentiated):
        def loss(kernel, mask):
            layers = PARAMS["layers"] | {"up": PARAMS["layers"]["up"] | {"kernel": kernel}}
            state, patches = CONFIG.build(PARAMS | {"layers": layers})(images, mask, differentiated)
            return jnp.sum(jnp.sin(state)) + jnp.sum(jnp.square(patches))

        return jax.grad(loss, argnums=(0, 1))(kernel, mask)

    both = jax.jit(lambda kernel, mask: (slopes(kernel, mask, 1), slopes(kernel, mask, None)))
    (some, by_mask), (every, by_mask_of_all) = both(PARAMS["layers"]["up"]["kernel"], mask)
    np.testing.assert_allclose(by_mask, by_mask_of_all, rtol=1e-4)
    np.testing.assert_allclose(some[2], every[2], rtol=1e-4, atol=1e-5)
    assert not np.any(some[:2]) and np.any(every[0]) and np.any(every[1])


ADAPTERS = {"lora": LoRA(2, rules=VIT_PROJECTIONS), "bottleneck": Bottleneck(3, VIT_BLOCK_ENDS)}


@jax.jit
def forward(params, images):
    return CONFIG.build(params)(images)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_begin_as_the_base_and_are_those_of_the_loop(name):
    adapter, before, images = ADAPTERS[name], fingerprint(PARAMS), RNG.normal(size=(1, 16, 16, 3)).astype(np.float32)
    start = adapter.init(PARAMS, 0)
    assert set(start["layers"]) == ({"qkv", "o", "up", "down"} if name == "lora" else {"o", "down"})
    for one, other in zip(forward(adapter.attach(PARAMS, start), images), forward(PARAMS, images), strict=True):
        np.testing.assert_array_equal(one, other)
    moved = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(0, 0.3, leaf.shape), jnp.float32), start)
    attached = adapter.attach(PARAMS, moved)
    found, expected = forward(attached, images), naive(images[0], np.zeros(16), PARAMS["positions"], attached)
    np.testing.assert_allclose(found[0][0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1][0], expected[1:], rtol=1e-4, atol=1e-4)
    assert np.abs(expected[0] - forward(PARAMS, images)[0][0]).max() > 0.01 and fingerprint(PARAMS) == before
    if isinstance(adapter, LoRA):
        assert fingerprint(adapter.apply(PARAMS, start)) == before
        merged = adapter.apply(PARAMS, moved)
        np.testing.assert_allclose(forward(merged, images)[0], found[0], rtol=1e-4, atol=1e-4)
        for one, other in zip(jax.tree.leaves(adapter.unmerge(merged, moved)), jax.tree.leaves(PARAMS), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_an_adapter_where_there_is_no_place_for_one_is_refused():
    for adapter, said in (
        (Bottleneck(3, ("qkv/kernel",)), "layers/qkv/kernel: the model has no place for adapter_down there"),
        (LoRA(2, rules=("^embed/kernel",)), "embed/kernel: the model has no place for lora_a there"),
    ):
        with pytest.raises(InputError, match=said):
            CONFIG.build(adapter.attach(PARAMS, adapter.init(PARAMS, 0)))


def test_caulks_of_a_vision_transformer_are_trained_side_by_side():
    images, labels = RNG.normal(size=(12, 8, 8, 3)).astype(np.float32), RNG.integers(0, 2, 12).astype(np.float32)

    def loss(params, rows):
        return jnp.square(CONFIG.build(params)(rows[0])[0][:, 0] - rows[1]).mean()

    methods = {"adapter": Method(ADAPTERS["bottleneck"], learning_rate=0.02, attach=True)}
    rows, test = (images[:8], labels[:8]), (images[8:], labels[8:])
    cells = run_grid(loss, loss, {1.0: PARAMS}, methods, rows, test, [8], 2, Fitting(steps=20, batch=8), in_flight=2)
    start = float(loss(PARAMS, rows))
    assert len(cells) == 2 and all(cell.loss < 0.8 * start and cell.norm > 0 for cell in cells)
