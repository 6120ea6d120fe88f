"""Programs on which ``pj.lazily`` must equal the dense oracle, by name: one primitive, one way to write a model, or one trap each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import perturbjax as pj
from perturbjax.noise import DISTRIBUTIONS
from perturbjax.noise.spec import SCALES

DRAWS = np.random.default_rng(0)


def normal(*shape: int, fan_in: int = 1) -> np.ndarray:
    return (DRAWS.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


# D = 40 and not 32: a column of rademacher words then ends inside a word.
PARAMS: dict[str, Any] = {
    "gain": np.float32(0.8),
    "bias": normal(40),
    "bias_out": normal(24),
    "norms": normal(3, 40),
    "w": normal(40, 24, fan_in=40),
    "v": normal(40, 24, fan_in=40),
    "square": normal(40, 40, fan_in=40),
    "table": normal(70, 40),
    "stack": normal(3, 40, 40, fan_in=40),
    "stack_last": normal(40, 40, 3, fan_in=40),
    "heads": normal(40, 4, 10, fan_in=40),
    "kernel": normal(3, 3, 4, 6, fan_in=36),
    "kernel_oihw": normal(6, 4, 3, 3, fan_in=36),
    "deep": normal(2, 2, 40, 40, fan_in=40),
    "steps": np.int32(3),
    "mask": np.arange(40) % 3 > 0,
}
X = normal(5, 40)
IMAGE = normal(2, 8, 8, 4)
IDS = np.array([0, 33, 69, 33, -1, -70, 5], np.int32)
OUTSIDE = np.array([0, 33, 70, -71, 1000, -1], np.int32)


@dataclass(frozen=True)
class Case:
    """``fn(params, *args)``.

    Attributes:
        whole: the primitives for which a matrix or more is materialized, in the order of the program.
        exact: values are only moved, so the outputs are equal to the last bit.
        every_noise: run with every kind of noise.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...] = ()
    whole: tuple[str, ...] = ()
    exact: bool = False
    every_noise: bool = False


CASES: dict[str, Case] = {}


def add(name: str, fn: Callable[..., Any], leaves: str | Any, *args: Any, **flags: Any) -> None:
    """Registers a case; ``leaves`` names what it takes of ``PARAMS``, or is a tree of its own."""
    assert name not in CASES, name
    params = {leaf: PARAMS[leaf] for leaf in leaves.split()} if isinstance(leaves, str) else leaves
    CASES[name] = Case(fn, params, args, **flags)


# Dots and their operands.
add("dot", lambda p, x: x @ p["w"], "w", X, every_noise=True)
add("dot, parameter on the left", lambda p, x: p["w"].T @ x.T, "w", X)
add("dot of two parameters", lambda p: p["w"].T @ p["v"], "w v")
add("dense layer with bias and gain", lambda p, x: jnp.tanh(x @ p["w"] + p["bias_out"][None]) * p["gain"], "w bias_out gain", X)
add("matrix times vector", lambda p, x: p["square"] @ x[0] + p["bias"], "square bias", X)
add("einsum over heads", lambda p, x: jnp.einsum("bd,dhk->bhk", x, p["heads"]), "heads", X)
add("einsum with a batch of matrices", lambda p, x: jnp.einsum("bd,lde->lbe", x, p["stack"]), "stack", X)
add("einsum with a trace", lambda p: jnp.einsum("ii->", p["square"]), "square", whole=("select_n",))
add("dot with preferred type", lambda p, x: jnp.dot(x, p["w"], preferred_element_type=jnp.float32), "w", X)
add("cast before the dot", lambda p, x: x.astype(jnp.float32) @ p["w"].astype(jnp.float32), "w", X)
add("parameter used twice", lambda p, x: x @ p["square"] + x @ p["square"].T, "square", X)
add("tied embedding", lambda p, ids: p["table"][ids] @ p["table"].T, "table", IDS, every_noise=True)
add("low-rank adapter", lambda p, x: x @ (p["w"] @ p["v"].T), "w v", X)
add("matrix multiplied by a number", lambda p, x: x @ (p["w"] * 3.0), "w", X, whole=("mul",))
add("weight norm", lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True)), "w", X, whole=("mul", "mul", "div"))
add("concatenated parameters", lambda p, x: x @ jnp.concatenate([p["w"], p["v"]], 1), "w v", X, whole=("concatenate",) * 2)
add(
    "linear solve",
    lambda p, x: jnp.linalg.solve(p["square"].astype(jnp.float32) + 3 * jnp.eye(40), x.T.astype(jnp.float32)),
    "square",
    X,
    whole=("add",),
)
add("ranks 0 to 4", lambda p: jax.tree.map(lambda leaf: leaf.sum(), p), "gain bias w stack deep", whole=("reduce_sum",) * 3)
add("integer and boolean leaves", lambda p, x: jnp.where(p["mask"], p["bias"], 0) * p["steps"].astype(x.dtype), "mask steps bias", X)

# Views.
add("transpose, reshape", lambda p, x: x @ p["heads"].transpose(1, 2, 0).reshape(40, 40).T, "heads", X)
add("split into three", lambda p, x: [x @ part for part in jnp.split(p["w"], 3, axis=1)], "w", X, every_noise=True)
add(
    "split of a reshape",
    lambda p, x: [x @ part[0] for part in jnp.split(p["w"].reshape(2, 20, 24).swapaxes(0, 1).reshape(1, 40, 24), [8], axis=2)],
    "w",
    X,
)
add("broadcast over a batch", lambda p, x: jnp.broadcast_to(p["w"], (5, 40, 24)) * x[:, :, None], "w", X)
add("reversed rows", lambda p, x: x @ p["w"][::-1], "w", X)
add("static slices", lambda p, x: x[:, :25] @ p["table"][33:58, 3:], "table", X, every_noise=True)
add("strided slice", lambda p, x: x[:, :35] @ p["table"][::2], "table", X, every_noise=True)
add("slice of a transpose", lambda p, x: x @ p["table"].T[:, 30:41], "table", X)
add("slice of a slice of a row", lambda p: p["stack"][1][5:20][:, 7], "stack", exact=True)
add(
    "parameters returned",
    lambda p: (p["w"], p["w"].T, p["bias"], p["gain"], p["steps"]),
    "w bias gain steps",
    exact=True,
    whole=("return",) * 2,
    every_noise=True,
)

# Gathers.
add("row by traced index", lambda p, i: p["table"][i], "table", np.int32(-3), exact=True)
add("rows by ids", lambda p, ids: p["table"][ids], "table", IDS, exact=True, every_noise=True)
add("rows by ids of rank 2", lambda p, ids: p["table"][ids], "table", IDS[:6].reshape(2, 3), exact=True)
add("columns by ids", lambda p, ids: p["table"][:, ids], "table", IDS % 40, exact=True, every_noise=True)
add("middle dim by ids", lambda p, ids: p["stack"][:, ids], "stack", IDS % 40, exact=True, every_noise=True)
add("leading dim by ids", lambda p, ids: p["stack"][ids], "stack", IDS % 3, exact=True)
add("rows of a chosen layer", lambda p, ids: p["stack"][1][ids], "stack", IDS % 40, exact=True)
add("rows of a transpose", lambda p, ids: p["table"].T[ids], "table", IDS % 40, exact=True)
add("rows of a merge of dims", lambda p, ids: p["stack"].reshape(120, 40)[ids], "stack", IDS, exact=True, whole=("gather",))
add("one element", lambda p, i: p["table"][i, i], "table", np.int32(7), exact=True)
add("elements by two lists", lambda p, ids: p["table"][ids, ids], "table", IDS % 40, exact=True, whole=("gather",))
add(
    "take_along_axis",
    lambda p, ids: jnp.take_along_axis(p["table"], ids[None], axis=0),
    "table",
    np.resize(IDS, 40),
    exact=True,
    whole=("gather",),
)
for mode in ("fill", "clip", "wrap"):
    add(
        f"take outside the table, {mode}",
        lambda p, ids, mode=mode: jnp.take(p["table"], ids, axis=0, mode=mode),
        "table",
        OUTSIDE,
        exact=True,
    )
add("take with a fill value", lambda p, ids: jnp.take(p["table"], ids, axis=0, mode="fill", fill_value=7), "table", OUTSIDE, exact=True)
add("take no rows", lambda p, ids: jnp.take(p["table"], ids, axis=0), {"table": PARAMS["table"]}, IDS[:0], exact=True)
ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
for kind, ids in (("int8", np.array([3, 127, -1, -128], np.int8)), ("uint8", np.array([3, 255], np.uint8))):
    for mode in ("fill", "clip"):  # the bounds of the table lie outside the type of the indices
        gather = functools.partial(lax.gather, dimension_numbers=ROWS, slice_sizes=(1, 3), mode=mode)
        add(
            f"gather by {kind}, {mode}",
            lambda p, ids, gather=gather: gather(p["rows"], ids[:, None]),
            {"rows": normal(300, 3)},
            ids,
            exact=True,
        )
add(
    "dynamic_slice, clamped",
    lambda p, i: lax.dynamic_slice(p["table"], (i, i), (33, 7)),
    "table",
    np.int32(50),
    exact=True,
    whole=("return",),
    every_noise=True,
)
add(
    "dynamic_index_in_dim, clamped",
    lambda p, i: lax.dynamic_index_in_dim(p["table"], i, 0, keepdims=False),
    "table",
    np.int32(99),
    exact=True,
)
add("dynamic_index_in_dim, negative", lambda p, i: lax.dynamic_index_in_dim(p["table"], i, 0), "table", np.int32(-2), exact=True)
for kind, first in (("uint32", np.uint32(0)), ("int32", np.int32(0)), ("uint8", np.uint8(0))):
    add(
        f"dynamic_slice before the first row, {kind}",  # unsigned, that is the last one
        lambda p, i: lax.dynamic_slice(p["table"], (i - jnp.asarray(1, i.dtype), jnp.zeros_like(i)), (1, 40)),
        "table",
        first,
        exact=True,
    )
add("row by index under vmap", lambda p, ids: jax.vmap(lambda i: p["table"][i])(ids), "table", IDS, exact=True)
add("column by index under vmap", lambda p, ids: jax.vmap(lambda i: p["table"][:, i], out_axes=1)(ids), "table", IDS % 40, exact=True)
add(
    "windows under vmap",
    lambda p, ids: jax.vmap(lambda i: lax.dynamic_slice(p["table"], (i, 2), (4, 30)))(ids),
    "table",
    IDS,
    exact=True,
    whole=("gather",),
)
BOTH = lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(1, 0))
PAIRS = np.array([[0, 3], [0, 70], [1, 5], [0, -1]], np.int32)
for mode in ("fill", "clip"):
    add(
        f"gather by pairs, {mode}",
        lambda p, ids, mode=mode: lax.gather(p["table"], ids, BOTH, (1, 40), mode=mode),
        "table",
        PAIRS,
        exact=True,
    )

# Loops and branches.


def scanned(p, x, **how):
    """A residual layer per step, and a statistic of each."""

    def layer(h, weights):
        w, g = weights
        return h + jnp.tanh(h @ w) * g[None], h.sum()

    return lax.scan(layer, x, (p["stack"], p["norms"]), **how)


def repeat(p, x, count):
    return lax.fori_loop(0, count, lambda i, h: jnp.tanh(h @ lax.dynamic_index_in_dim(p["stack"], i, keepdims=False)), x)


def until(p, x):
    going = lambda state: (state[1] < 3) & (jnp.abs(state[0]).sum() * p["gain"] > -1)  # noqa: E731
    return lax.while_loop(going, lambda state: (jnp.tanh(state[0] @ p["square"]), state[1] + 1), (x, 0))


def nested(p, x):
    inner = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
    return lax.scan(lambda h, ws: (lax.scan(inner, h, ws)[0], h.sum()), x, p["deep"])


add("scan over stacked layers", scanned, "stack norms", X, every_noise=True)
add("scan in reverse", functools.partial(scanned, reverse=True), "stack norms", X)
add("scan unrolled by two", functools.partial(scanned, unroll=2), "stack norms", X)
add("scan unrolled", functools.partial(scanned, unroll=True), "stack norms", X)
add("scan over transposed layers", lambda p, x: scanned({"stack": p["stack"].swapaxes(1, 2), "norms": p["norms"]}, x), "stack norms", X)
add(
    "scan over the last dim",
    lambda p, x: scanned({"stack": p["stack_last"].transpose(2, 0, 1), "norms": p["norms"]}, x),
    "stack_last norms",
    X,
    every_noise=True,
)
add("scan over a cast", lambda p, x: scanned(jax.tree.map(lambda a: a.astype(jnp.float32), p), x.astype(jnp.float32)), "stack norms", X)
add("scan, parameter as constant", lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ p["square"]), None), x, None, length=3)[0], "square", X)
add(
    "scan, parameter as carry",
    lambda p, x: lax.scan(lambda h, w: (h @ w, None), p["square"], p["stack"])[0],
    "square stack",
    X,
    whole=("scan",),
)
add("scan returns layers", lambda p, x: lax.scan(lambda h, w: (h, w), x, p["stack"])[1], "stack", X, exact=True, whole=("return",))
add(
    "scan over a merged dim",
    lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["deep"].reshape(4, 40, 40))[0],
    "deep",
    X,
    whole=("scan",),
)
add(
    "scan of no steps",
    lambda p, x: lax.scan(lambda h, w: (h @ w, None), x + p["bias"], p["stack"][:0])[0],
    "stack bias",
    X[0],
    whole=("scan",),
)
add("scan in a scan", nested, "deep", X)
add("map over layers", lambda p, x: lax.map(lambda w: x @ w, p["stack"]), "stack", X)
add("fori_loop, static count", lambda p, x: repeat(p, x, 3), "stack", X)
add("fori_loop, traced count", repeat, "stack", X, np.int32(3))
add("while_loop", until, "square gain", X)
add(
    "while_loop under vmap, steps by row",
    lambda p, x: jax.vmap(
        lambda v: lax.while_loop(
            lambda c: (c[1] < 6) & (jnp.abs(c[0]).sum() > 4), lambda c: (0.7 * jnp.tanh(c[0] @ p["square"]), c[1] + 1), (v, 0)
        )
    )(x),
    "square",
    X * np.array([[0.1], [1], [0.4], [2], [0.2]], np.float32),
)
add(
    "while_loop under vmap, parameter in the condition",
    lambda p, x: jax.vmap(
        lambda v: lax.while_loop(lambda c: (c[1] < 99) & ((c[0] @ p["w"]).max() > 0.1), lambda c: (0.95 * c[0], c[1] + 1), (v, 0))
    )(x),
    "w",
    X,
)
add("while_loop, parameter as carry", lambda p: lax.while_loop(lambda w: w.sum() < 50, lambda w: w + 1, p["bias"]), "bias")
add("cond", lambda p, x, yes: lax.cond(yes, lambda: x @ p["square"], lambda: x * p["bias"][None]), "square bias", X, np.bool_(True))
add(
    "cond, the other branch",
    lambda p, x, yes: lax.cond(yes, lambda: x @ p["square"], lambda: x * p["bias"][None]),
    "square bias",
    X,
    np.bool_(False),
)
add(
    "switch, clamped",
    lambda p, x, i: lax.switch(i, [lambda w: x @ w, lambda w: x @ w.T, lambda w: w[:5]], p["square"]),
    "square",
    X,
    np.int32(9),
    whole=("cond",),
)
add("associative_scan", lambda p: lax.associative_scan(jnp.add, p["norms"]), "norms")

# Functions within functions, and transformations.


@jax.custom_jvp
def jvp_matmul(w, x):
    return x @ w


@jax.custom_vjp
def vjp_matmul(w, x):
    return x @ w


jvp_matmul.defjvp(lambda primals, tangents: (jvp_matmul(*primals), jvp_matmul(*primals)))
vjp_matmul.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: saved)

add("jit inside", lambda p, x: jax.jit(lambda w: jax.jit(lambda w: x @ w)(w.T).T)(p["square"]), "square", X)
add("remat", lambda p, x: jax.checkpoint(lambda w: jnp.tanh(x @ w))(p["w"]), "w", X)
add("remat with a policy", lambda p, x: jax.checkpoint(lambda w: x @ w, policy=jax.checkpoint_policies.dots_saveable)(p["w"]), "w", X)
add("remat in a scan", lambda p, x: lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, p["stack"])[0], "stack", X)
add("custom_jvp of a parameter", lambda p, x: jvp_matmul(p["w"], x), "w", X)
add("custom_vjp of a parameter", lambda p, x: vjp_matmul(p["w"], x), "w", X)
add("custom_jvp of an activation", lambda p, x: jax.nn.silu(jax.nn.relu(x @ p["w"])), "w", X)
add("vmap over inputs", lambda p, x: jax.vmap(lambda row: row @ p["w"])(x), "w", X)
add(
    "vmap over stacked parameters",
    lambda p, x: jax.vmap(lambda w, g: jnp.tanh(x @ w) * g[None])(p["stack"], p["norms"]),
    "stack norms",
    X,
)
add("gradient by the inputs", lambda p, x: jax.grad(lambda x: jnp.tanh(x @ p["w"]).sum())(x), "w", X)
add(
    "stop_gradient, optimization_barrier",
    lambda p, x: x @ lax.optimization_barrier(lax.stop_gradient(p["w"])),
    "w",
    X,
    whole=("optimization_barrier",),
)
add("named axis inside vmap", lambda p, x: jax.vmap(lambda row: lax.psum(row @ p["w"], "b"), axis_name="b")(x), "w", X)

# Convolutions and attention.
CONV = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
add("convolution NHWC", lambda p, x: CONV(x, p["kernel"], dimension_numbers=("NHWC", "HWIO", "NHWC")), "kernel", IMAGE, every_noise=True)
add("convolution NCHW", lambda p, x: CONV(x.transpose(0, 3, 1, 2), p["kernel_oihw"]), "kernel_oihw", IMAGE)
add(
    "depthwise convolution",
    lambda p, x: CONV(x, p["kernel"][:, :, :1, :4], dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4),
    "kernel",
    IMAGE,
)
add("transposed convolution", lambda p, x: lax.conv_transpose(x, p["kernel"], (2, 2), "SAME"), "kernel", IMAGE)


def attention(p, x):
    q, k, v = (jnp.einsum("bd,dhk->bhk", x, p["heads"][..., 3 * i : 3 * i + 3]) for i in range(3))
    weights = jax.nn.softmax(jnp.einsum("qhk,shk->hqs", q, k), axis=-1)
    return jnp.einsum("hqs,shk->qhk", weights, v)


add("attention with fused projections", attention, "heads", X, every_noise=True)


# Trees.
class Pair(NamedTuple):
    w: Any
    b: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=("w", "inner"), meta_fields=("name",))
@dataclass(frozen=True)
class Module:
    w: Any
    inner: Any
    name: str = "module"


add("tuple of parameters", lambda p, x: x @ p[0] + p[1][None], (PARAMS["w"], PARAMS["bias_out"]), X)
add("list in a dict, None", lambda p, x: x @ p["a"][0] + p["a"][1][None], {"a": [PARAMS["w"], PARAMS["bias_out"], None]}, X)
add("named tuple", lambda p, x: x @ p.w + p.b[None], Pair(PARAMS["w"], PARAMS["bias_out"]), X)
add("dataclass in a dataclass", lambda p, x: x @ p.w + p.inner.w[None], Module(PARAMS["w"], Module(PARAMS["bias_out"], None)), X)
add("a bare array", lambda w, x: x @ w, PARAMS["w"], X)
add("a bare number", lambda t, x: x[0] * t, np.float32(1.5), X)
add("parameters as keyword of a closure", lambda p, x: (lambda *, weights: x @ weights["w"])(weights=p), "w", X)

NOISES = [
    *(pj.Noise(name, 1 + i % 2, SCALES[1 + i % 2]) for i, name in enumerate(DISTRIBUTIONS)),
    pj.Noise(rules=(pj.Rule("^(bias|norms)", None), pj.Rule("^w$", "rms"))),
]
