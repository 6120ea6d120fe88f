"""Random small programs of views, parts, gathers, loops and branches of one parameter, against the dense oracle."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from support.oracle import jit, relative_error

import perturbjax as pj

NUMBER = st.integers(0, 10**6)
# Rademacher noise is exact arithmetic: whatever only moves or casts it must agree to the last bit.
NOISES = [pj.Noise("rademacher"), pj.Noise("rademacher", 1), pj.Noise(), pj.Noise("gaussian", 2)]
POPULATION = pj.Population(seed=2, size=4, sigmas=(0.25,))


def flat(v: Any, dim: int) -> Any:
    """Dims ``dim`` and the next merged."""
    return v.reshape(*v.shape[:dim], v.shape[dim] * v.shape[dim + 1], *v.shape[dim + 2 :])


def cut(v: Any, dim: int, k: int) -> Any:
    """Dim ``dim`` split in two where it can be."""
    factor = next((f for f in (2, 3) if v.shape[dim] % f == 0), 1)
    return v.reshape(*v.shape[:dim], *((factor, -1) if k % 2 else (v.shape[dim] // factor, factor)), *v.shape[dim + 1 :])


def part(v: Any, dim: int, k: int, step: int = 1) -> Any:
    start = k % v.shape[dim]
    return lax.slice_in_dim(v, start, start + 1 + (k // 7) % (v.shape[dim] - start), step, dim)


def rows(v: Any, dim: int, k: int, traced: Any) -> Any:
    """Some of them twice, some outside."""
    ids = (jnp.arange(4) * (k % 11) + traced) % (2 * v.shape[dim] + 1) - v.shape[dim] // 2
    return jnp.take(v, ids, axis=dim, mode=("fill", "clip", "wrap")[k % 3], fill_value=0.5)


VIEWS = {
    "transpose": lambda v, d, k, t: jnp.moveaxis(v, d, k % v.ndim),
    "merge": lambda v, d, k, t: flat(v, d) if d + 1 < v.ndim else v,
    "cut": lambda v, d, k, t: cut(v, d, k),
    "slice": lambda v, d, k, t: part(v, d, k),
    "stride": lambda v, d, k, t: part(v, d, k, 2 + k % 2),
    "reverse": lambda v, d, k, t: jnp.flip(v, d),
    "stack": lambda v, d, k, t: jnp.broadcast_to(jnp.expand_dims(v, d), (*v.shape[:d], 2, *v.shape[d:])),
    "rows": rows,
    "row": lambda v, d, k, t: lax.dynamic_index_in_dim(v, k % 40 + t, d, keepdims=bool(k % 2)),
    "window": lambda v, d, k, t: lax.dynamic_slice_in_dim(v, k % 40 + t, 1 + k % v.shape[d], d),
    "piece": lambda v, d, k, t: jnp.split(v, [v.shape[d] // 2], d)[k % 2] if v.shape[d] > 1 else v,
    "jit": lambda v, d, k, t: jax.jit(lambda v: jnp.flip(v, d))(v),
    "remat": lambda v, d, k, t: jax.checkpoint(lambda v: jnp.moveaxis(v, d, 0))(v),
}  # fmt: skip
USES = {
    "return": lambda v, t: v,
    "dot": lambda v, t: jnp.ones((2, v.shape[0])) @ v.reshape(v.shape[0], -1) if v.size else v,
    "itself": lambda v, t: lax.dot_general(v, v, (((0,), (0,)), ((), ()))) if v.ndim == 2 else v * v,
    "elementwise": lambda v, t: jnp.tanh(v) + t.astype(v.dtype),
    "scan": lambda v, t: lax.scan(lambda c, row: (c + row, c[..., None] * 2), jnp.zeros(v.shape[1:]), v, reverse=True),
    "constant": lambda v, t: lax.scan(lambda c, i: (c + v[i % v.shape[0]], None), jnp.zeros(v.shape[1:]), jnp.arange(3))[0],
    "while": lambda v, t: lax.fori_loop(0, t, lambda i, c: c + lax.dynamic_index_in_dim(v, i, 0, False), jnp.zeros(v.shape[1:])),
    "cond": lambda v, t: lax.cond(t > 1, lambda: v[0], lambda: v[-1] * 2),
    "vmap": lambda v, t: jax.vmap(lambda row: row.sum() * jnp.ones(2))(v),
}


@st.composite
def programs(draw: Any) -> tuple[tuple[int, ...], list[tuple[str, int, int]], str]:
    shape: tuple[int, ...] = ()
    for size in draw(st.lists(st.sampled_from([1, 2, 3, 6, 34, 40]), max_size=4)):
        shape += (size,) if math.prod(shape) * size <= 8000 else ()
    return shape, draw(st.lists(st.tuples(st.sampled_from(sorted(VIEWS)), NUMBER, NUMBER), max_size=5)), draw(st.sampled_from(sorted(USES)))


def run(views: list[tuple[str, int, int]], use: str, params: Any, traced: jax.Array) -> Any:
    value = params["leaf"]
    for name, dim, k in views:
        if value.ndim and math.prod(value.shape) * 4 < 100_000:
            value = VIEWS[name](value, dim % value.ndim, k, traced)
    return USES[use](value if value.ndim else value[None], traced)


@settings(max_examples=35, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(programs(), st.sampled_from(NOISES), st.integers(0, 3))
def test_random_programs_equal_the_oracle(program, noise, number):
    shape, views, use = program
    fn = functools.partial(run, views, use)
    params = {"leaf": jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)}
    traced = jnp.int32(number)
    expected = jit(fn)(pj.perturb(params, POPULATION[1], noise), traced)
    found = jit(pj.lazily(fn))(pj.lazy(params, POPULATION[1], noise), traced)
    error = relative_error(found, expected)
    exact = use == "return" and noise.distribution == "rademacher" and noise.rank != 2
    assert error == 0 if exact else error < 1e-5
