"""Run by ``test_lazy_sharding`` with 8 forced devices: shard_map and sharding constraints inside ``fn``; prints one line per case."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import perturbjax as pj
from support.oracle import POPULATION, jit, relative_error

MESH = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
DRAWS = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(DRAWS.standard_normal(shape) / np.sqrt(40), jnp.float32)


PARAMS = {"w": normal(40, 24), "table": normal(80, 40), "stack": normal(4, 40, 40), "bias": normal(40)}
X, IDS = normal(8, 40), jnp.arange(8) * 9
shard_map = functools.partial(jax.shard_map, mesh=MESH)
matmul = lambda w, x: x @ w  # noqa: E731


def split(spec, out, x_spec=P(), reduce=None, **how):  # noqa: B008
    """x @ w with w split by ``spec``."""
    body = matmul if reduce is None else lambda w, x: lax.psum(x @ w, reduce)
    return lambda p, x: shard_map(body, in_specs=(spec, x_spec), out_specs=out, **how)(p["w"], x)


def layers(w, x):
    step = lambda h, w: (h + lax.all_gather(h @ w, "b", axis=1, tiled=True), None)  # noqa: E731
    return lax.scan(step, lax.pcast(x, ("b",), to="varying"), w)[0]


def vocabulary(table, ids):
    """Each device looks up what lies in its rows."""
    local = jnp.where(ids // 20 == lax.axis_index("a"), ids % 20, -99)
    return lax.psum(jnp.take(table, local, axis=0, mode="fill", fill_value=0), "a")


def constrained(spec):
    return lambda w: lax.with_sharding_constraint(w, NamedSharding(MESH, spec))


def mapped(body, leaf, in_specs, out_specs):
    return lambda p, x: shard_map(body, in_specs=in_specs, out_specs=out_specs)(p[leaf], x)


AB, SCANNED = P("a", "b"), P(None, None, "b")
each = lambda w, x: lax.map(lambda w: x @ w, w)  # noqa: E731
CASES = {
    "replicated": (split(P(), P("a"), P("a")), X, ()),
    "columns split": (split(P(None, "b"), AB, P("a")), X, ()),
    "rows split, psum": (split(P("b"), P("a"), AB, "b"), X, ()),
    "both split": (split(AB, P(None, "b"), P(None, "a"), "a"), X, ()),
    "one dim over two axes": (split(P(None, ("b", "a")), P(None, ("b", "a"))), X, ()),
    "without checks": (split(P(None, "b"), AB, P("a"), check_vma=False), X, ()),
    "one axis manual": (lambda p, x: jax.jit(split(P(None, "b"), P(None, "b"), axis_names={"b"}))(p, x), X, ()),
    "scan over split layers": (mapped(layers, "stack", (SCANNED, P()), P(None, "b")), X, ()),
    "layers split": (mapped(each, "stack", (P("a"), P()), P("a")), X, ()),
    "vector split": (mapped(lambda b, x: x + b[None], "bias", (P("b"), AB), AB), X, ()),
    "rows of a table split by columns": (mapped(lambda t, ids: t[ids], "table", (P(None, "b"), P("a")), AB), IDS, ()),
    "rows of a table split by rows": (mapped(vocabulary, "table", (P("a"), P()), P()), IDS, ()),
    "a view, replicated": (lambda p, x: shard_map(matmul, in_specs=(P(), P()), out_specs=P())(p["table"][40:].T, x), X, ()),
    "a view, split": (lambda p, x: split(P(None, "b"), P(None, "b"))({"w": p["table"].T[:, :24]}, x), X, ("shard_map",)),
    "sharding constraint": (lambda p, x: x @ constrained(AB)(p["w"]), X, ()),
    "sharding constraint on scanned layers": (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, constrained(P(None, "a", "b"))(p["stack"]))[0], X, (),
    ),
    "sharding constraint, then shard_map": (lambda p, x: split(P(), P())({"w": constrained(AB)(p["w"])}, x), X, ()),
}  # fmt: skip

if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    for i, (name, (fn, x, whole)) in enumerate(CASES.items()):
        noise = [pj.Noise(), pj.Noise("rademacher"), pj.Noise("rademacher", 2)][i % 3]
        noises = [noise] if len(sys.argv) == 1 else [pj.Noise(), pj.Noise("rademacher"), pj.Noise("gaussian", 1), pj.Noise("rademacher", 2)]
        for noise in noises:
            theta = pj.lazy(PARAMS, POPULATION[2], noise)
            found = jit(pj.lazily(fn))(theta, x)
            error = relative_error(found, jit(fn)(pj.perturb(PARAMS, POPULATION[2], noise), x))
            made = tuple(use.primitive for use in pj.lazily(fn).usage(theta, x).materialized)
            moved = np.abs(found - jit(fn)(PARAMS, x)).max() > 1e-3
            print("ok" if error < 1e-5 and made == whole and moved else "WRONG", name, noise.distribution, noise.rank, f"{error:.1e}", made)
