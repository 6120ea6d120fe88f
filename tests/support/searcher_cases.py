"""Small parameters of every form, a gradient, and noise of every kind."""

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.noise import Noise, Rule

SHAPES = {"layers/wide": (3, 4, 9), "layers/norm": (3, 5), "experts": (2, 3, 6, 4), "bias": (7,)}
NOISES = [
    Noise("gaussian"),
    Noise("rademacher", scale="rms", rules=(Rule("bias", None),)),
    Noise("gaussian", rank=1, stacked="^layers/"),
    Noise("rademacher", rank=3, stacked="^layers/", rules=(Rule("experts", "rms"),)),
    Noise("gaussian", scale="modular"),
]


def drawn(seed: int) -> dict[str, jax.Array]:
    generator = np.random.default_rng(seed)
    return {path: jnp.asarray(generator.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}


PARAMS, GRADIENT = drawn(0), drawn(1)


def name(noise: Noise) -> str:
    return f"{noise.distribution}-{noise.rank}-{noise.scale}"
