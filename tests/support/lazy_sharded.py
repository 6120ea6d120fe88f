"""Run by ``test_oracle`` with 8 forced devices: shard_map and sharding constraints inside ``fn`` and around ``lazily``, and the meshes of
``score_population``; prints one line per case."""

import contextlib
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import perturbjax as pj
from support.oracle import POPULATION, relative_error

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

# ``lazily`` inside the user's shard_map, with its checks on: over inputs, and over candidates.
CANDIDATES = pj.Population(seed=4, size=4, sigmas=(0.1, 0.2))[:]


def several_uses(p, x):
    h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["stack"][0], p["stack"])[0]
    h = lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ p["stack"][i]) + p["bias"][None], h) + p["table"][jnp.arange(x.shape[0])]
    long = lambda c: (c[1] < 6) & (jnp.abs(c[0]).sum() > 8)  # noqa: E731
    h = jax.vmap(lambda v: lax.while_loop(long, lambda c: (0.7 * jnp.tanh(c[0] @ p["stack"][1]), c[1] + 1), (v, 0))[0])(h)
    return h @ (p["w"] * 2)


def over_inputs(model, p, x):
    run = lambda p, x: jax.vmap(lambda candidate: model(p, candidate, x))(CANDIDATES)  # noqa: E731
    return shard_map(run, in_specs=(P(), P("a")), out_specs=P(None, "a"))(p, x)


def over_candidates(model, p, x):
    run = lambda candidates, p, x: jax.vmap(lambda candidate: model(p, candidate, x))(candidates)  # noqa: E731
    return shard_map(run, in_specs=(P("a"), P(), P()), out_specs=P("a"))(CANDIDATES, p, x)


def inside_users_shard_map(noise):
    for how in (over_inputs, over_candidates):
        found = jax.jit(functools.partial(how, lambda p, c, x: pj.lazily(several_uses)(pj.lazy(p, c, noise), x)))(PARAMS, X)
        expected = jax.jit(functools.partial(how, lambda p, c, x: several_uses(pj.perturb(p, c, noise), x)))(PARAMS, X)
        error = relative_error(found, expected)
        print("ok" if error < 1e-5 else "WRONG", how.__name__, noise.distribution, noise.rank, f"{error:.1e}")


def scorer_meshes():
    """``score_population`` where a mesh is set, on a mesh without our axis, and of functions that hold shardings."""
    rows = lambda p, x: jnp.tanh(x @ p["w"]).sum(-1)  # noqa: E731
    constraint = lambda p, x: rows(p, lax.with_sharding_constraint(x, NamedSharding(MESH, P("a"))))  # noqa: E731
    mapped = lambda p, x: shard_map(lambda w, x: lax.psum(x @ w, "b"), in_specs=(P("b"), AB), out_specs=P("a"))(p["w"], x).sum(-1)  # noqa: E731
    explicit = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    sharded = jax.device_put(PARAMS, NamedSharding(explicit, P(None)))
    sharded["w"] = jax.device_put(PARAMS["w"], NamedSharding(explicit, P(None, "b")))
    cases = {
        "a mesh is set": (rows, PARAMS, None, MESH),
        "an explicit mesh is set": (rows, PARAMS, None, explicit),
        "no axis of ours": (rows, PARAMS, MESH, None),
        "sharding constraint": (constraint, PARAMS, MESH, None),
        "shard_map": (mapped, PARAMS, MESH, None),
        "explicit sharding": (lambda p, x: jnp.tanh(x @ p["w"])[:, :24].sum(-1), sharded, explicit, None),
    }
    noise, population = pj.Noise("rademacher", scale="rms"), pj.Population(seed=4, size=3, sigmas=(0.1,))
    for name, (fn, params, mesh, around) in cases.items():
        expected = np.stack([jax.jit(fn if mesh is None else rows)(pj.perturb(PARAMS, population[i], noise), X) for i in range(3)])
        if name == "shard_map":
            expected = np.stack([(X @ pj.perturb(PARAMS, population[i], noise)["w"]).sum(-1) for i in range(3)])
        for strategy in ("lazy", "auto") if around is explicit else ("lazy", "copy"):
            with jax.set_mesh(around) if around else contextlib.nullcontext():
                found = pj.score_population(fn, params, population, noise, X, mesh, strategy=strategy)
            error = np.abs(found - expected).max() / np.abs(expected).max()
            print("ok" if error < 1e-5 else "WRONG", name, strategy, f"{error:.1e}")


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    for i, (name, (fn, x, whole)) in enumerate(CASES.items()):
        noise = [pj.Noise(), pj.Noise("rademacher"), pj.Noise("rademacher", 2)][i % 3]
        noises = [noise] if len(sys.argv) == 1 else [pj.Noise(), pj.Noise("rademacher"), pj.Noise("gaussian", 1), pj.Noise("rademacher", 2)]
        for noise in noises:
            theta = pj.lazy(PARAMS, POPULATION[2], noise)
            found = jax.jit(pj.lazily(fn))(theta, x)
            error = relative_error(found, jax.jit(fn)(pj.perturb(PARAMS, POPULATION[2], noise), x))
            made = tuple(use.primitive for use in pj.lazily(fn).usage(theta, x).materialized)
            moved = np.abs(found - jax.jit(fn)(PARAMS, x)).max() > 1e-3
            print("ok" if error < 1e-5 and made == whole and moved else "WRONG", name, noise.distribution, noise.rank, f"{error:.1e}", made)
    inside_users_shard_map(pj.Noise("rademacher"))
    inside_users_shard_map(pj.Noise(rank=1))
    scorer_meshes()
