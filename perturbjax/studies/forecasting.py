"""The toy of the signals study: families of 1-D signals, a network that predicts the next value, and its training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CONTEXT, FUTURE = 10, 60
"""Values that the network sees, and values that it then forecasts one after the other, as in the paper."""
LENGTH = CONTEXT + FUTURE
WIDTH = 64
LIMIT = 2.0
"""Forecasts are clipped to this size, which no signal reaches: a forecast that runs away has a bounded error."""
LEARNING_RATE, BATCH = 3e-3, 256

_WAVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sine": lambda turns: np.sin(2 * np.pi * turns),
    "triangle": lambda turns: 4 * np.abs(turns % 1 - 0.5) - 1,
    "square": lambda turns: np.where(turns % 1 < 0.5, 1.0, -1.0),
}
FAMILIES = ("line", *_WAVES)

Net = dict[str, jax.Array]
"""Weights and biases of three dense layers."""


def draw(family: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Signals (count, ``LENGTH``) float32 of one family: lines between two random heights, or waves of a random period (6 to 14 values),
    phase and amplitude."""
    t = np.arange(LENGTH)[None]
    if family == "line":
        first, last = generator.uniform(-1, 1, (2, count, 1))
        return (first + (last - first) * t / (LENGTH - 1)).astype(np.float32)
    period, phase, amplitude = (generator.uniform(low, high, (count, 1)) for low, high in ((6, 14), (0, 1), (0.3, 1)))
    return (amplitude * _WAVES[family](t / period + phase)).astype(np.float32)


def random_net(key: jax.Array) -> Net:
    """Untrained: normal weights with variance 2 / inputs (He et al. 2015), a quarter of it in the last layer, biases 0."""
    sizes = [(CONTEXT, WIDTH, 1.0), (WIDTH, WIDTH, 1.0), (WIDTH, 1, 0.5)]
    net = {}
    for number, (inputs, outputs, gain) in enumerate(sizes):
        net[f"w{number}"] = jax.random.normal(jax.random.fold_in(key, number), (inputs, outputs)) * np.float32(gain * np.sqrt(2 / inputs))
        net[f"b{number}"] = jnp.zeros(outputs)
    return net


def next_value(net: Net, window: jax.Array) -> jax.Array:
    """The value () after ``CONTEXT`` values."""
    hidden = jax.nn.relu(window @ net["w0"] + net["b0"])
    hidden = jax.nn.relu(hidden @ net["w1"] + net["b1"])
    return (hidden @ net["w2"] + net["b2"])[0]


def forecast(net: Net, contexts: jax.Array) -> jax.Array:
    """The futures (B, ``FUTURE``) of contexts (B, ``CONTEXT``): each value forecast is part of the next window."""

    def step(window: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        value = jnp.clip(next_value(net, window), -LIMIT, LIMIT)
        return jnp.append(window[1:], value), value

    return jax.vmap(lambda context: jax.lax.scan(step, context, None, length=FUTURE)[1])(contexts)


def score(net: Net, signals: jax.Array) -> jax.Array:
    """Minus the mean squared error (B,) of the forecasts of signals (B, ``LENGTH``): higher is better."""
    return -jnp.square(forecast(net, signals[:, :CONTEXT]) - signals[:, CONTEXT:]).mean(axis=1)


def trivial_error(signals: np.ndarray) -> float:
    """Mean squared error of the better of two forecasts without a model: the last value seen, and the mean of the context."""
    seen, future = signals[:, :CONTEXT], signals[:, CONTEXT:]
    constants = (seen[:, -1:], seen.mean(axis=1, keepdims=True))
    return min(float(np.square(future - constant).mean(dtype=np.float64)) for constant in constants)


@functools.partial(jax.jit, static_argnames=("steps",))
def train(net: Net, signals: jax.Array, key: jax.Array, steps: int) -> Net:
    """Trained by AdamW on the next value of random windows of signals (n, ``LENGTH``), with a cosine schedule."""
    import optax  # the `train` extra

    from perturbjax.train.config import Training
    from perturbjax.train.optimizer import make_optimizer

    optimizer = make_optimizer(Training(learning_rate=LEARNING_RATE, weight_decay=0.0), steps)

    def loss(net: Net, windows: jax.Array) -> jax.Array:
        return jnp.square(jax.vmap(next_value, (None, 0))(net, windows[:, :CONTEXT]) - windows[:, CONTEXT]).mean()

    def step(state: tuple[Any, optax.OptState], key: jax.Array) -> tuple[tuple[Any, optax.OptState], None]:
        net, moments = state
        rows, starts = jax.random.randint(key, (2, BATCH), 0, jnp.array([[len(signals)], [FUTURE]]))
        windows = jax.vmap(lambda row, start: jax.lax.dynamic_slice(signals, (row, start), (1, CONTEXT + 1))[0])(rows, starts)
        updates, moments = optimizer.update(jax.grad(loss)(net, windows), moments, net)
        return (optax.apply_updates(net, updates), moments), None

    return jax.lax.scan(step, (net, optimizer.init(net)), jax.random.split(key, steps))[0][0]
