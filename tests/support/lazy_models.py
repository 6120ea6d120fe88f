"""Models written with the usual libraries, unmodified, as ``lazily`` meets them: name -> (function, parameters, inputs)."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.pretrained import load_model
from support.paths import FIXTURES

D, HEADS, LAYERS, VOCABULARY = 16, 4, 3, 50
DRAWS = np.random.default_rng(0)
X = DRAWS.standard_normal((2, 6, D)).astype(np.float32)
IMAGE = DRAWS.standard_normal((2, 8, 8, 3)).astype(np.float32)
IDS = DRAWS.integers(0, VOCABULARY, (2, 6)).astype(np.int32)

Built = tuple[Callable[..., Any], Any, Any]
MODELS: dict[str, Callable[[], Built]] = {}


def model(name: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        MODELS[name] = build
        return build

    return register


def of_nnx(module: nnx.Module, x: Any) -> Built:
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params, x  # type: ignore[operator]


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, D, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(D, 4 * D, rngs=rngs), nnx.Linear(4 * D, D, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class Stacked(nnx.Module):
    """Layers along a leading axis of every parameter, run by nnx.scan; embedding and unembedding are tied."""

    def __init__(self, rngs: nnx.Rngs, remat: bool = False):
        self.embed = nnx.Embed(VOCABULARY, D, rngs=rngs)
        self.layers = nnx.vmap(Block)(rngs.split(LAYERS))
        self.remat = remat

    def __call__(self, ids: jax.Array) -> jax.Array:
        def step(x: jax.Array, layer: Block) -> jax.Array:
            return layer(x)

        body = nnx.remat(step) if self.remat else step
        return self.embed.attend(nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(self.embed(ids), self.layers))


@model("NNX MLP")
def _() -> Built:
    rngs = nnx.Rngs(0)
    return of_nnx(nnx.Sequential(nnx.Linear(D, 32, rngs=rngs), nnx.relu, nnx.RMSNorm(32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)), X)


@model("NNX convolutional network with batch norm")
def _() -> Built:
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
    pool = functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
    layers = nnx.Conv(3, 4, (3, 3), rngs=rngs), norm, nnx.relu, pool, nnx.Conv(4, 2, (3, 3), strides=2, rngs=rngs)
    return of_nnx(nnx.Sequential(*layers), IMAGE)


@model("NNX transformer, nnx.scan over stacked layers, tied embedding")
def _() -> Built:
    return of_nnx(Stacked(nnx.Rngs(0)), IDS)


@model("NNX transformer, scanned and rematerialized")
def _() -> Built:
    return of_nnx(Stacked(nnx.Rngs(0), remat=True), IDS)


@model("NNX recurrent network")
def _() -> Built:
    rngs = nnx.Rngs(0)
    cell = nnx.GRUCell(D, 8, rngs=rngs)
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    carry = jnp.zeros((2, 8))

    def fn(params: Any, x: jax.Array) -> jax.Array:
        cell = nnx.merge(graph, params, rest)
        return jax.lax.scan(cell, carry, x.swapaxes(0, 1))[1]

    return fn, params, X


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        return x + nn.Dense(D)(nn.gelu(nn.Dense(4 * D)(x))), None


@model("Linen MLP")
def _() -> Built:
    net = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)])
    return net.apply, net.init(jax.random.key(0), X), X


@model("Linen convolutional network")
def _() -> Built:
    net = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.ConvTranspose(4, (3, 3), strides=(2, 2)), nn.GroupNorm(2)])
    return net.apply, net.init(jax.random.key(0), IMAGE), IMAGE


@model("Linen transformer, nn.scan with nn.remat")
def _() -> Built:
    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, ids: jax.Array) -> jax.Array:
            embed = nn.Embed(VOCABULARY, D)
            layers = nn.scan(nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
            return embed.attend(layers()(embed(ids), None)[0])

    net = Transformer()
    return net.apply, net.init(jax.random.key(0), IDS), IDS


def of_equinox(module: Any, call: Callable[..., Any], x: Any) -> Built:
    params, static = eqx.partition(module, eqx.is_array)
    return lambda params, x: call(eqx.combine(params, static), x), params, x


@model("Equinox MLP")
def _() -> Built:
    return of_equinox(eqx.nn.MLP(D, 4, 32, 2, key=jax.random.key(0)), lambda net, x: jax.vmap(jax.vmap(net))(x), X)


@model("Equinox convolutional network")
def _() -> Built:
    keys = jax.random.split(jax.random.key(0), 2)
    layers = [eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Lambda(jax.nn.relu), eqx.nn.MaxPool2d(2), eqx.nn.Conv2d(4, 2, 3, key=keys[1])]
    return of_equinox(eqx.nn.Sequential(layers), lambda net, x: jax.vmap(net)(x.transpose(0, 3, 1, 2)), IMAGE)


@model("Equinox attention over embedded tokens")
def _() -> Built:
    keys = jax.random.split(jax.random.key(0), 2)
    net = (eqx.nn.Embedding(VOCABULARY, D, key=keys[0]), eqx.nn.LayerNorm(D), eqx.nn.MultiheadAttention(HEADS, D, key=keys[1]))

    def call(net: Any, ids: jax.Array) -> jax.Array:
        embed, norm, attention = net
        x = jax.vmap(norm)(jax.vmap(embed)(ids))
        return attention(x, x, x)

    return of_equinox(net, lambda net, ids: jax.vmap(functools.partial(call, net))(ids), IDS)


@model("Equinox layers stacked and scanned")
def _() -> Built:
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(D, D, key=key))(jax.random.split(jax.random.key(0), LAYERS))

    def call(layers: Any, x: jax.Array) -> jax.Array:
        arrays, static = eqx.partition(layers, eqx.is_array)
        step = lambda h, arrays: (jnp.tanh(eqx.combine(arrays, static)(h)), None)  # noqa: E731
        return jax.lax.scan(step, x, arrays)[0]

    return of_equinox(layers, call, X[0, 0])


def of_haiku(call: Callable[[jax.Array], Any], x: Any) -> Built:
    net = hk.without_apply_rng(hk.transform(call))
    return net.apply, net.init(jax.random.key(0), x), x


@model("Haiku MLP")
def _() -> Built:
    return of_haiku(lambda x: hk.nets.MLP([32, 4])(x), X)


@model("Haiku convolutional network")
def _() -> Built:
    return of_haiku(
        lambda x: hk.Sequential([hk.Conv2D(4, 3), jax.nn.relu, hk.AvgPool((2, 2, 1), (2, 2, 1), "SAME"), hk.Flatten(), hk.Linear(3)])(x),
        IMAGE,
    )


@model("Haiku layer_stack over an embedding")
def _() -> Built:
    def call(ids: jax.Array) -> jax.Array:
        x = hk.Embed(VOCABULARY, D)(ids)

        @hk.layer_stack(LAYERS)
        def layer(x: jax.Array) -> jax.Array:
            return x + hk.MultiHeadAttention(HEADS, D // HEADS, w_init=hk.initializers.VarianceScaling(1.0), model_size=D)(x, x, x)

        return layer(x)

    return of_haiku(call, IDS)


@model("Haiku LSTM")
def _() -> Built:
    def call(x: jax.Array) -> Any:
        core = hk.LSTM(8)
        return hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)[0]

    return of_haiku(call, X)


@model("the package's own decoder (Llama), bfloat16")
def _() -> Built:
    llama = load_model(str(FIXTURES / "tiny_llama3"))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), llama.params)

    def fn(params: Any, ids: jax.Array) -> jax.Array:
        decoder = decoder_from_params(llama.config, params)
        return decoder.logits(decoder(ids, jnp.broadcast_to(jnp.arange(6), ids.shape), causal_mask(jnp.ones(ids.shape, bool)))[0])

    return fn, params, IDS
