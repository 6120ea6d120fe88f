"""Models of other people's libraries at random weights, unmodified, as ``lazily`` meets them; and a table of how it does.

    pip install 'perturbjax[zoo]'; PYTHONPATH=tests python tests/support/zoo.py [--bounds] [NAME...]

Columns: glue = lines that make (function of parameters, parameters, input) of the library's own objects; error = largest difference from
the dense oracle over the largest value, worst of gaussian, rademacher and rank 1; materialized = the primitives for which a matrix or more
was made whole; then for gaussian and rademacher noise, in one jit: compile = CPU seconds of compiling over those of the plain function;
efficiency = time of the plain function over that of one candidate, medians of 7, in turn. NAMEs select libraries.

With --bounds, what bounds both, in another table: the same times beside those of a program that does nothing but make the noise and add it
(``perturb``). Whoever makes the noise once reaches at most plain / (plain + noise), and compiles plain and noise.
"""

import importlib.metadata
import inspect
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturbjax as pj
from support.oracle import relative_error

Built = tuple[Callable[..., Any], Any, Any]
ZOO: dict[str, tuple[str, Callable[[], Built]]] = {}
"""Library, as it is installed -> (model, what builds it)."""
NOISES = (pj.Noise("gaussian"), pj.Noise("rademacher"), pj.Noise("gaussian", 1))
DRAWS = np.random.default_rng(0)
KEY = jax.random.key(0)


def zoo(library: str, model: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        ZOO[library] = model, build
        return build

    return register


def ids(vocabulary: int, *shape: int) -> jax.Array:
    return jnp.asarray(DRAWS.integers(0, vocabulary, shape), jnp.int32)


def of_equinox(module: Any, call: Callable[..., Any], x: Any) -> Built:
    import equinox as eqx

    params, static = eqx.partition(module, eqx.is_inexact_array)
    return lambda params, x: jax.vmap(lambda row: call(eqx.combine(params, static), row))(x), params, x


@zoo("equimo", "vision transformer, 4 blocks of 64")
def _() -> Built:
    from equimo.vision.models import VisionTransformer  # pyright: ignore[reportMissingImports]

    images = jnp.asarray(DRAWS.standard_normal((16, 3, 32, 32)), jnp.float32)
    net = VisionTransformer(32, 3, dim=64, patch_size=8, num_heads=4, depths=[4], num_classes=10, key=KEY)
    return of_equinox(net, lambda net, image: net(image, key=KEY, inference=True), images)


@zoo("eqx-zoo", "Qwen3, 4 layers of 64")
def _() -> Built:
    from eqx_zoo import CausalLM, Config  # pyright: ignore[reportMissingImports]

    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}
    rest = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": True}
    config = Config("Qwen3ForCausalLM", **sizes, **rest, attention_bias=False, qk_norm=True, rope_scaling=None)
    return of_equinox(CausalLM(config, key=KEY), lambda net, row: net(row)[0], ids(128, 16, 32))


@zoo("esm2quinox", "ESM2 of proteins, 4 layers of 64")
def _() -> Built:
    from esm2quinox import ESM2  # pyright: ignore[reportMissingImports]

    return of_equinox(ESM2(4, 64, 4, False, KEY), lambda net, row: net(row).logits, ids(20, 16, 32) + 4)


@zoo("flowjax", "masked autoregressive flow, 8 layers of 50")
def _() -> Built:
    import paramax  # pyright: ignore[reportMissingImports]
    from flowjax.distributions import Normal  # pyright: ignore[reportMissingImports]
    from flowjax.flows import masked_autoregressive_flow  # pyright: ignore[reportMissingImports]

    flow = masked_autoregressive_flow(KEY, base_dist=Normal(jnp.zeros(8)))
    x = jnp.asarray(DRAWS.standard_normal((64, 8)), jnp.float32)
    return of_equinox(flow, lambda flow, row: paramax.unwrap(flow).log_prob(row), x)


@zoo("flaxmodels", "ResNet-18")
def _() -> Built:
    from flaxmodels import ResNet18  # pyright: ignore[reportMissingImports]

    net, x = ResNet18(output="logits", pretrained=None, num_classes=10), jnp.asarray(DRAWS.random((4, 32, 32, 3)), jnp.float32)
    state = dict(net.init(KEY, x, train=False))
    params = state.pop("params")
    return lambda params, x: net.apply({"params": params, **state}, x, train=False), params, x


@zoo("penzai", "Llama, 4 layers of 64")
def _() -> Built:
    from penzai import pz  # pyright: ignore[reportMissingImports]
    from penzai.models.transformer.variants.llamalike_common import (  # pyright: ignore[reportMissingImports]
        LlamalikeTransformerConfig,
        build_llamalike_transformer,
    )

    sizes = {"num_kv_heads": 2, "query_head_multiplier": 2, "embedding_dim": 64, "projection_dim": 16, "mlp_hidden_dim": 128}
    rest = {"num_decoder_blocks": 4, "vocab_size": 128, "mlp_variant": "swiglu", "tie_embedder_and_logits": True}
    net, variables = pz.unbind_variables(build_llamalike_transformer(LlamalikeTransformerConfig(**sizes, **rest), KEY))

    def logits(params: Any, rows: jax.Array) -> jax.Array:
        tokens = pz.nx.wrap(rows).tag("batch", "seq")
        positions = pz.nx.arange("seq", rows.shape[1])
        return pz.bind_variables(net, params)(tokens, token_positions=positions).unwrap("batch", "seq", "vocabulary")

    return logits, [variable.freeze() for variable in variables], ids(128, 16, 32)


@zoo("e3nn-jax", "equivariant layers on spherical harmonics")
def _() -> Built:
    import e3nn_jax as e3nn  # pyright: ignore[reportMissingImports]
    import flax.linen as nn

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            features = e3nn.spherical_harmonics("0e + 1o + 2e", x, normalize=True)
            for _ in range(3):
                features = e3nn.flax.Linear("32x0e + 32x1o + 16x2e")(e3nn.concatenate([features, e3nn.tensor_square(features[..., :4])]))
            return e3nn.flax.Linear("4x0e")(features).array

    net, x = Layers(), jnp.asarray(DRAWS.standard_normal((256, 3)), jnp.float32)
    return net.apply, net.init(KEY, x), x


@zoo("jraph", "graph network, 3 steps of 64")
def _() -> Built:
    import haiku as hk
    import jraph  # pyright: ignore[reportMissingImports]

    nodes, edges = (jnp.asarray(DRAWS.standard_normal((count, 64)), jnp.float32) for count in (64, 256))
    senders, receivers = ids(64, 256), ids(64, 256)
    graph = jraph.GraphsTuple(nodes, edges, receivers, senders, jnp.zeros((1, 64)), jnp.array([64]), jnp.array([256]))

    def steps(graph: Any) -> jax.Array:
        for _ in range(3):
            update = (jraph.concatenated_args(hk.nets.MLP([64, 64])) for _ in range(3))
            graph = jraph.GraphNetwork(*update)(graph)
        return graph.nodes

    net = hk.without_apply_rng(hk.transform(steps))
    return net.apply, net.init(KEY, graph), graph


@zoo("netket", "autoregressive wave function of 16 spins, 3 layers of 16")
def _() -> Built:
    os.environ["NETKET_ENABLE_X64"] = "0"  # else importing it changes what JAX does everywhere
    import netket as nk  # pyright: ignore[reportMissingImports]

    spins = jnp.asarray(DRAWS.choice([-1.0, 1.0], (64, 16)), jnp.float32)
    net = nk.models.ARNNDense(nk.hilbert.Spin(0.5, 16), layers=3, features=16, param_dtype=np.float32)
    return net.apply, net.init(KEY, spins), spins


@zoo("google-tunix", "Llama 3, 4 layers of 64")
def _() -> Built:
    from flax import nnx
    from tunix.models.llama3.model import Llama3, ModelConfig  # pyright: ignore[reportMissingImports]

    sizes = {"num_layers": 4, "vocab_size": 128, "embed_dim": 64, "hidden_dim": 128, "num_heads": 4, "head_dim": 16, "num_kv_heads": 2}
    graph, params = nnx.split(
        Llama3(ModelConfig(**sizes, rope_theta=10_000, norm_eps=1e-5, weight_tying=True), rngs=nnx.Rngs(0)), nnx.Param
    )
    mask, positions = jnp.tril(jnp.ones((1, 32, 32), bool)), jnp.broadcast_to(jnp.arange(32), (16, 32))
    return lambda params, x: nnx.merge(graph, params)(x, positions, None, mask)[0], params, ids(128, 16, 32)


def candidate() -> pj.Candidate:
    return pj.Population(seed=11, size=3, sigmas=(0.02,))[2]


def errors(built: Built) -> list[float]:
    """Of each noise, how far the function of lazy parameters is from that of dense ones, and it must be far from the base's."""
    fn, params, x = built
    found = []
    for noise in NOISES:
        expected = jax.jit(lambda params, x, noise=noise: fn(pj.perturb(params, candidate(), noise), x))(params, x)
        found.append(relative_error(jax.jit(pj.perturbed(fn, noise))(candidate(), params, x), expected))
        assert relative_error(expected, jax.jit(fn)(params, x)) > 1e-3
    return found


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """The compiled function, and the CPU time that compiling took, in seconds."""
    lowered, started = jax.jit(fn).lower(*args), time.process_time()
    program = lowered.compile()
    return program, time.process_time() - started


def medians(*calls: Callable[[], Any], rounds: int = 7) -> list[float]:
    """Seconds of each call; they take turns, so that what else runs on the machine slows all alike."""
    seconds = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - started)
    return [float(np.median(taken)) for taken in seconds]


def row(library: str) -> str:
    model, build = ZOO[library]
    fn, params, x = built = build()
    lines = sum(bool(line.strip()) for line in inspect.getsource(build).splitlines()) - 2
    usage = pj.lazily(fn).usage(pj.lazy(params, candidate(), NOISES[0]), x)
    made = ", ".join(f"{use.primitive}" for use in usage.materialized) or "nothing"
    plain, plain_s = compiled(fn, params, x)
    programs = [compiled(pj.perturbed(fn, noise), candidate(), params, x) for noise in NOISES[:2]]
    base, *lazy = medians(lambda: plain(params, x), *(lambda run=run: run(candidate(), params, x) for run, _ in programs))
    compiling = " / ".join(f"{seconds / plain_s:.1f}" for _, seconds in programs)
    efficiency = " / ".join(f"{base / seconds:.2f}" for seconds in lazy)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    versioned = f"{library} {importlib.metadata.version(library)}"
    return (
        f"| {model}, {count / 1e3:.0f}k weights | {versioned} | {lines} | {max(errors(built)):.0e} | {made} | {compiling} | {efficiency} |"
    )


def bounds(library: str) -> list[str]:
    """A row for each of gaussian and rademacher noise."""
    model, build = ZOO[library]
    fn, params, x = build()
    plain, plain_s = compiled(fn, params, x)
    rows = []
    for noise in NOISES[:2]:
        alone, alone_s = compiled(lambda candidate, params, noise=noise: pj.perturb(params, candidate, noise), candidate(), params)
        lazy, lazy_s = compiled(pj.perturbed(fn, noise), candidate(), params, x)
        times = medians(lambda: plain(params, x), lambda run=alone: run(candidate(), params), lambda run=lazy: run(candidate(), params, x))
        base, made, one = times
        milliseconds = " | ".join(f"{1e3 * seconds:.2f}" for seconds in times)
        compiling = " | ".join(f"{seconds:.1f}" for seconds in (plain_s, alone_s, lazy_s))
        leaves = len(jax.tree.leaves(params))
        rows.append(
            f"| {model} | {noise.distribution} | {leaves} | {milliseconds} | {base / (base + made):.2f} | {base / one:.2f} | {compiling} |"
        )
    return rows


def main(*names: str) -> None:
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n")
    if names and names[0] == "--bounds":
        columns = [
            "model",
            "noise",
            "leaves",
            "plain,ms",
            "noise,ms",
            "candidate,ms",
            "bound",
            "reached",
            "compile_plain,s",
            "noise,s",
            "candidate,s",
        ]
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for library in names[1:] or ZOO:
            print("\n".join(bounds(library)), flush=True)
        return
    print("| model | library | glue | error | materialized | compile, x plain | efficiency |\n|---|---|---|---|---|---|---|")
    for library in names or ZOO:
        print(row(library), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
