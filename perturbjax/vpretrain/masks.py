"""``MaskDesigner``: a small U-Net that says how likely each patch of a view is to be hidden from the student.

Masks are random and differentiable: relaxed Bernoulli variables (arXiv 1611.00712) with the U-Net's logits, moved together so that the mean
of each mask is exactly the given ratio. So a designer can only choose where to mask, and masks without one are random masks of that ratio.

Axis letters: B images, S pixels of a side, C channels, P patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError, positive_integer

HALVINGS = 24
"""Of the bracket of a root, which a Newton step then finds to float32."""


@dataclass(frozen=True)
class MaskDesigner:
    """The static shape of a designer of masks. The U-Net (ours; arXiv 2601.22108 names no sizes) begins at the grid of patches.

    Attributes:
        patch: pixels of a side of a patch.
        ratio: mean of a mask; 0: nothing is masked.
        width: channels of the U-Net at the grid; twice as many at half of it.
        temperature: of the relaxation; the lower, the nearer masks are to 0 and 1.
        channels: C.

    Raises:
        InputError: one of them cannot be used.
    """

    patch: int
    ratio: float = 0.3
    width: int = 16
    temperature: float = 0.5
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("patch", "width", "channels"):
            positive_integer(name, getattr(self, name))
        if not 0 <= self.ratio < 1:
            raise InputError(f"`ratio` {self.ratio}: a share of the patches, from 0 to below 1, is required")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"`temperature` {self.temperature}: a number above 0 is required")

    def init(self, seed: int) -> dict[str, Any]:
        """Random parameters as nested dicts of float32 numpy arrays; logits are 0 at the start."""
        rng, w = np.random.default_rng(seed), self.width
        shapes = {"patches": (self.patch, self.patch, self.channels, w), "down": (3, 3, w, 2 * w), "middle": (3, 3, 2 * w, 2 * w)}
        shapes["up"] = (3, 3, 3 * w, w)

        def layer(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
            kernel = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
            return {"kernel": kernel.astype(np.float32), "bias": np.zeros(shape[-1], np.float32)}

        out = {"kernel": np.zeros((1, 1, w, 1), np.float32), "bias": np.zeros(1, np.float32)}
        return {name: layer(shape) for name, shape in shapes.items()} | {"out": out}

    def logits(self, params: Any, views_BxSxSxC: jax.Array) -> jax.Array:
        """Of each patch (B, P)."""
        grid = jax.nn.gelu(_convolved(views_BxSxSxC, params["patches"], self.patch, "VALID"))
        half = jax.nn.gelu(_convolved(grid, params["down"], 2))
        half = jax.nn.gelu(_convolved(half, params["middle"]))
        wide = jax.image.resize(half, (*grid.shape[:3], half.shape[-1]), "nearest")
        mixed = jax.nn.gelu(_convolved(jnp.concatenate([grid, wide], axis=-1), params["up"]))
        return _convolved(mixed, params["out"]).reshape(len(mixed), -1)

    def masks(self, logits_BxP: jax.Array, noise_BxP: jax.Array) -> jax.Array:
        """Masks (B, P) in [0, 1] of mean ``ratio``; noise of the logistic distribution."""
        return with_mean((logits_BxP + noise_BxP) / self.temperature, self.ratio)


def with_mean(x_BxP: jax.Array, ratio: float) -> jax.Array:
    """sigmoid(x + b), with b of each row such that its mean is ``ratio``; derivatives by x know that b depends on it."""
    x = jax.lax.stop_gradient(x_BxP)
    level = jax.scipy.special.logit(jnp.float32(ratio))

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = jax.nn.sigmoid(x + middle).mean(axis=-1, keepdims=True) < ratio
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = level - x.max(axis=-1, keepdims=True), level - x.min(axis=-1, keepdims=True)
    b, _ = jax.lax.fori_loop(0, HALVINGS, halve, ends)
    # A Newton step from the constant b: its derivative by x is that of the root, by the implicit function theorem.
    means = jax.nn.sigmoid(x_BxP + b)
    slope = jax.lax.stop_gradient(means * (1 - means)).mean(axis=-1, keepdims=True)
    return jax.nn.sigmoid(x_BxP + b - (means.mean(axis=-1, keepdims=True) - ratio) / jnp.maximum(slope, 1e-12))


def _convolved(x: jax.Array, layer: Any, stride: int = 1, padding: str = "SAME") -> jax.Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (stride, stride), padding, dimension_numbers=dimensions)
    return y + layer["bias"][None, None, None]
