"""Views of images: random crops, large and small (multi-crop, arXiv 2006.09882), with the colors changed a little.

Shapes are static, and a view depends on its key alone, so that views are the same on any mesh. Axis letters: B images, S pixels of a side,
s pixels of a side of a small view, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from perturbjax.errors import InputError, positive_integer

GLOBALS = 2
"""Large views of an image: each is the other's target."""


@dataclass(frozen=True)
class Views:
    """How views are made.

    Attributes:
        local: s; ``locals``: how many small views of an image, if any.
        global_area, local_area: shares of the image that views show, drawn uniformly between the two.
        jitter: how far at most a channel's gain lies from 1, and its offset from 0.

    Raises:
        InputError: one of them cannot be used.
    """

    local: int
    locals: int = 2
    global_area: tuple[float, float] = (0.5, 1.0)
    local_area: tuple[float, float] = (0.15, 0.5)
    jitter: float = 0.2

    def __post_init__(self) -> None:
        positive_integer("local", self.local)
        if self.locals:
            positive_integer("locals", self.locals)
        for name in ("global_area", "local_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise InputError(f"`{name}` {low}, {high}: two shares of the image, above 0 and growing to at most 1, are required")
        if not 0 <= self.jitter < math.inf:
            raise InputError(f"`jitter` {self.jitter}: 0 or a number above it is required")

    def make(self, images_BxSxSxC: jax.Array, keys_B: jax.Array) -> tuple[jax.Array, ...]:
        """Large views (B, 2, S, S, C), and small ones if any (B, locals, s, s, C), of images; a typed key for each image."""
        side, channels = images_BxSxSxC.shape[2:]

        def of(image: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
            draws = jax.random.uniform(key, (GLOBALS + self.locals, 3 + 2 * channels))

            def views(draws: jax.Array, size: int, area: tuple[float, float]) -> jax.Array:
                return jax.vmap(lambda draw: self._view(image, draw, size, area))(draws)

            large = views(draws[:GLOBALS], side, self.global_area)
            return (large, views(draws[GLOBALS:], self.local, self.local_area)) if self.locals else (large,)

        return jax.vmap(of)(images_BxSxSxC, keys_B)

    def _view(self, image: jax.Array, draw: jax.Array, size: int, area: tuple[float, float]) -> jax.Array:
        side, channels = image.shape[1:]
        shown = side * jnp.sqrt(area[0] + (area[1] - area[0]) * draw[0])
        corner, scale = (side - shown) * draw[1:3], jnp.full(2, size / shown)
        view = jax.image.scale_and_translate(image, (size, size, channels), (0, 1), scale, -corner * scale, "linear")
        gain, shift = self.jitter * (2 * draw[3:].reshape(2, 1, 1, channels) - 1)
        return view * (1 + gain) + shift


def row_keys(seed: int, step: jax.Array, rows_B: jax.Array) -> jax.Array:
    """A typed key for each row of the data in a step: (B,)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)
