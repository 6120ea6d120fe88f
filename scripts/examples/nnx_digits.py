"""RandOpt around a small Flax NNX vision model: hand-written digits of a kind, drawn here.

The images are 8 x 8 digits from a 3 x 5 pixel font, shifted, scaled in brightness and buried in noise: synthetic, so that the example needs
no download, and easy. The base is trained with gradients on few images; the search then looks around it for models that are right more
often on the search split, and the best vote on a test split that nothing else has seen. Run: python scripts/examples/nnx_digits.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import perturbjax as pj

FONT = """
### .#. ### ### #.# ### ### ### ### ###
#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
#.# .#. ### ### ### ### ### ..# ### ###
#.# .#. #.. ..# ..# ..# #.# ..# #.# ..#
### ### ### ### ..# ### ### ..# ### ###
"""
GLYPHS = np.array([line.split() for line in FONT.split("\n")[1:-1]]).T  # (10 digits, 5 rows)


def draw(rng: np.random.Generator, count: int) -> tuple[jax.Array, jax.Array]:
    """Images (count, 8, 8, 1) and their digits (count,)."""
    digits = rng.integers(0, 10, count)
    images = rng.normal(0, 0.35, (count, 8, 8, 1)).astype(np.float32)
    for image, digit in zip(images, digits, strict=True):
        row, column = rng.integers(0, 4), rng.integers(0, 6)
        glyph = np.array([[pixel == "#" for pixel in line] for line in GLYPHS[digit]])
        image[row : row + 5, column : column + 3, 0] += rng.uniform(0.8, 1.6) * glyph
    return jnp.asarray(images), jnp.asarray(digits)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = nnx.Conv(1, 16, (3, 3), rngs=rngs), nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.first(images))
        x = nnx.max_pool(nnx.relu(self.second(x)), (2, 2), strides=(2, 2))
        return self.head(x.reshape(x.shape[0], -1))


@nnx.jit
def train_step(model: Net, optimizer: nnx.Optimizer, images: jax.Array, digits: jax.Array) -> None:
    def loss(model: Net) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), digits).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main() -> None:
    rng = np.random.default_rng(0)
    train, search, test = draw(rng, 2048), draw(rng, 512), draw(rng, 2048)
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    for start in range(0, 2048 * 6, 64):
        batch = slice(start % 2048, start % 2048 + 64)
        train_step(model, optimizer, train[0][batch], train[1][batch])

    # From here on: any function of a parameter pytree. The search never sees a gradient.
    graph, params = nnx.split(model, nnx.Param)

    def logits(params, images):
        return nnx.merge(graph, params)(images)

    def score(params, batch):
        images, digits = batch
        return (logits(params, images).argmax(-1) == digits).mean()

    noise = pj.Noise("rademacher", scale="rms")  # a sigma of 0.2 moves every weight by a fifth of its layer's typical size
    population = pj.Population(seed=0, size=256, sigmas=(0.2, 0.4))
    scores = pj.score_population(score, params, population, noise, search)
    members = pj.Ensemble(population, pj.top_k(scores, 25), noise, params)
    answers = members.apply(lambda params, x: logits(params, x).argmax(-1), params, test[0])  # (25 members, 2048 images)

    print(f"base            {float(score(params, test)):.3f}")
    print(f"best member     {float((answers[0] == test[1]).mean()):.3f}")
    print(f"vote of the 25  {float((pj.vote(answers) == test[1]).mean()):.3f}")


if __name__ == "__main__":
    main()
