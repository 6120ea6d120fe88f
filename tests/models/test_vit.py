"""The vision transformer against a loop over its layers in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from perturbjax.models.vit import ViTConfig

pytestmark = pytest.mark.usefixtures("unoptimized")

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
    return x @ layer["kernel"] + layer["bias"]


def naive(image, mask, positions):
    """One image, patch by patch and layer by layer."""
    side, p = len(image), CONFIG.patch
    places = [(row, column) for row in range(0, side, p) for column in range(0, side, p)]
    x = np.stack([dense(image[r : r + p, c : c + p].ravel(), PARAMS["embed"]) for r, c in places])
    x = (1 - mask[:, None]) * x + mask[:, None] * PARAMS["mask_token"] + positions.reshape(len(places), -1)
    x = np.concatenate([PARAMS["class_token"][None], x])
    for number in range(CONFIG.layers):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], PARAMS["layers"])
        q, k, v = np.split(dense(normed(x, layer["attention_norm"]), layer["qkv"]), 3, axis=-1)
        heads = []
        for h in np.split(np.arange(CONFIG.hidden), CONFIG.heads):
            heads.append(softmax(q[:, h] @ k[:, h].T / np.sqrt(len(h)), axis=-1) @ v[:, h])
        x = x + dense(np.concatenate(heads, axis=-1), layer["o"])
        x = x + dense(gelu(dense(normed(x, layer["mlp_norm"]), layer["up"])), layer["down"])
    return normed(x, PARAMS["norm"])


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
