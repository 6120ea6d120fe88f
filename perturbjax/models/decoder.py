"""One decoder-only transformer for every family of ``pretrained.families``, in Flax NNX, scanned over its layers.

Axis letters: B rows, T new tokens of a row, S key positions, P positions of a shared prefix, D model, F ffn, V vocab, L layers, H query
heads, K key/value heads, G = H / K, E head dim. Parameters are laid out as ``config.param_shapes`` says and travel as a plain nested dict
(``decoder_from_params`` makes the module), so perturbation, sharding and export see ordinary pytrees.

One module serves one device and several: with a ``TensorParallel`` the parameters are one device's blocks, all sizes but D and L are the
device's own, and sums over the "model" axis stand where the blocks of a matrix meet: after o, after down, and where tokens are looked up.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from perturbjax.models.adapter_layers import adapter_shapes
from perturbjax.models.attention import Attention, KVCache, Past, Prefix
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.context import Context, Layer
from perturbjax.models.experts import Experts
from perturbjax.models.linear import ACTIVATIONS, KEPT, Linear, apply_all, bottleneck_after, rms_norm, set_adapters
from perturbjax.models.partition import TensorParallel
from perturbjax.models.vocabulary import Vocabulary
from perturbjax.sharding import MODEL
from perturbjax.tree import leaf_paths, nest


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = Linear(d, f, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.up = Linear(d, f, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.down = Linear(f, d, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = apply_all((self.gate, self.up), x)
        return self.down(ACTIVATIONS[self.activation](gate) * up)


class Block(nnx.Module):
    """One layer. A norm that the family does not have is None."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any, parallel: TensorParallel | None):
        def norm(there: bool) -> nnx.RMSNorm | None:
            return rms_norm(config, config.hidden_size, rngs, dtype) if there else None

        before, after = config.norms != "post", config.norms != "pre"
        self.attention_norm = norm(before)
        self.attention = Attention(config, rngs, dtype, MODEL if parallel and parallel.attention else None)
        self.attention_post_norm = norm(after)
        self.mlp_norm = norm(before)
        self.mlp = Experts(config, rngs, dtype) if config.num_experts else MLP(config, rngs, dtype)
        self.mlp_post_norm = norm(after)

    def __call__(self, x: jax.Array, context: Context, layer: Layer, parallel: TensorParallel | None) -> tuple[jax.Array, KVCache]:
        """The residual stream after this layer, and the keys and values of the new tokens."""
        with jax.named_scope("attention"):
            q, k, v = self.attention.project(_normed(self.attention_norm, x), context.rotation(layer))
            own = KVCache(k, v)
            mixed = self.attention.attend(q, context.parts(own, layer), context.past_of(layer), layer.number)
            mixed = bottleneck_after(self.attention.o, _summed(mixed, parallel and parallel.attention))
            x = x + _normed(self.attention_post_norm, mixed)
        with jax.named_scope("mlp"):
            mixed = self.mlp(_normed(self.mlp_norm, x))
            mixed = bottleneck_after(self.mlp.down, _summed(mixed, parallel and parallel.mlp))
            x = x + _normed(self.mlp_post_norm, mixed)
        return x, own


class Decoder(nnx.Module):
    """Tokens to hidden states, and hidden states to logits. Built abstractly by ``decoder_from_params``; its own initialization is for
    tiny test models.

    Attributes:
        config: the sizes of what this device has.
        parallel: how the model is sharded over devices; None where one has all of it.
        vocabulary: what to ask about logits, of which this device has some.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any, parallel: TensorParallel | None = None):
        self.parallel, self.vocabulary = parallel, Vocabulary(config.vocab_size, parallel.size if parallel else 1)
        self.config = config = parallel.local(config) if parallel else config
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.vmap(lambda rngs: Block(config, rngs, dtype, parallel))(rngs.split(config.num_layers))
        self.norm = rms_norm(config, config.hidden_size, rngs, dtype)
        if not config.tied_head:
            self.head = nnx.Linear(config.hidden_size, config.vocab_size, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxT: jax.Array,
        prefix: Prefix | None = None,
        past: Past | None = None,
        lead: jax.Array | None = None,
        remat: bool = False,
        inputs_BxTxD: jax.Array | None = None,
        differentiated: int | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Runs the layers on new tokens.

        Args:
            tokens_BxT: token ids.
            positions_BxT: rotary positions.
            mask_BxTxT: which of the new tokens each new token sees.
            prefix: keys and values that every row sees besides.
            past: earlier keys and values of each row, seen by all its new tokens.
            lead: which of the first P tokens of row 0 each row sees besides, bool (B, P): a prefix that is run in the same pass.
            remat: a backward pass computes the activations of each layer again, so that one layer's are in memory at a time.
            inputs_BxTxD: what the first layer reads, in place of the embeddings of the tokens.
            differentiated: the layers, counted from the last, that derivatives go through; the others are constants to them, and no
                tangent or cotangent of theirs is computed. All when left out.

        Returns:
            Hidden states after the last norm, (B, T, D), and the keys and values of the T new tokens. ``past`` is only read: whoever keeps
            a cache writes the new columns of all layers in one go, which XLA does in place. Written layer by layer and read in the same
            step, XLA:CPU may copy all of it for every layer.
        """
        with jax.named_scope("embed"):
            x = self.vocabulary.look_up(self.embed, tokens_BxT) if inputs_BxTxD is None else inputs_BxTxD
            if self.config.scaled_embedding:
                x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        context = Context.of(self.config, positions_BxT, mask_BxTxT, prefix, past, lead)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x: jax.Array, scanned: tuple[Any, Layer]) -> tuple[jax.Array, KVCache]:
            state, its = scanned
            return nnx.merge(graphdef, state)(x, context, its, self.parallel)

        scanned, constant = (stacked, context.layers), self.config.num_layers - (differentiated or 0)
        # XLA cannot merge what is computed again with the first time: within a scan the two passes are loops of their own.
        kept = None if remat else jax.checkpoint_policies.save_only_these_names(KEPT)
        again = jax.checkpoint(layer, prevent_cse=False, policy=kept)
        if differentiated is None or constant <= 0:
            x, new = jax.lax.scan(again, x, scanned)
            return self.norm(x), new
        early, late = (jax.tree.map(lambda leaf, part=part: leaf[part], scanned) for part in (slice(constant), slice(constant, None)))
        x, first = jax.lax.scan(layer, *jax.lax.stop_gradient((x, early)))
        x, last = jax.lax.scan(again, x, late)
        return self.norm(x), jax.tree.map(lambda *parts: jnp.concatenate(parts), first, last)

    def empty(self, rows: int, columns: int) -> tuple[jax.Array, KVCache]:
        """Zeros in the shapes of the hidden states of one token a row, and of a cache with so many columns."""
        config, dtype = self.config, self.norm.dtype
        shape = (config.num_layers, rows, config.num_kv_heads, columns, config.head_dim)
        return jnp.zeros((rows, config.hidden_size), dtype), KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits of hidden states (..., D): float32 (..., V), of this device's tokens; ``vocabulary`` knows how to use them."""
        with jax.named_scope("head"):
            rows = hidden.reshape(-1, hidden.shape[-1])  # as in ``Linear``
            if self.config.tied_head:
                found = jnp.einsum("nd,vd->nv", rows, self.embed.embedding[...], preferred_element_type=jnp.float32)
            else:
                found = jnp.einsum("nd,dv->nv", rows, self.head.kernel[...], preferred_element_type=jnp.float32)
            return found.reshape(*hidden.shape[:-1], found.shape[-1])

    def logits_at(self, hidden_QxD: jax.Array, ids_QxC: jax.Array) -> jax.Array:
        """Logits of C chosen tokens per hidden state: float32 (Q, C), the same on every device. With a tied head without the rest of the
        vocabulary: its rows are the embedding's. From another head they would be columns, for which a TPU copies all of it."""
        if not self.config.tied_head:
            return self.vocabulary.take(self.logits(hidden_QxD), ids_QxC)
        with jax.named_scope("head"):
            ids, here = self.vocabulary.local(ids_QxC) if self.parallel else (ids_QxC, None)
            rows = jnp.take(self.embed.embedding[...], ids, axis=0)
            values = jnp.einsum("qd,qcd->qc", hidden_QxD, rows, preferred_element_type=jnp.float32)
            return values if here is None else jax.lax.psum(jnp.where(here, values, 0.0), MODEL)


def _normed(norm: nnx.RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


def _summed(x: jax.Array, sharded: bool | None) -> jax.Array:
    """The sum over the devices, where the matrix that made ``x`` is sharded by rows."""
    return jax.lax.psum(x, MODEL) if sharded else x


def decoder_from_params(config: DecoderConfig, params: Any, parallel: TensorParallel | None = None) -> Decoder:
    """The module over a nested dict of parameters (arrays or tracers), shaped as ``param_shapes(config)``. Nothing is copied.

    Beside the kernels of the layers there may be leaves of adapters (``adapters.LoRA.attach``).

    With ``parallel``, ``config`` is still that of the whole model, the parameters are one device's (``TensorParallel.dims``), and the
    module runs inside ``shard_map`` over the "model" axis.

    Raises:
        ValueError: a missing, superfluous or mis-shaped parameter, named.
    """
    leaves = leaf_paths(params)
    plain = param_shapes(parallel.local(config) if parallel else config)
    got = {path: jnp.shape(leaf) for path, leaf in leaves.items()}
    beside = adapter_shapes(plain, got)
    expected = plain | beside
    for path in sorted(expected.keys() | got.keys()):
        if expected.get(path) != got.get(path):
            raise ValueError(f"parameter {path}: shape {got.get(path)} where the model needs {expected.get(path)}")
    # Activations have the type of the weights; norms, rotary angles, attention weights and logits are float32 inside.
    dtype = params["embed"]["embedding"].dtype
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), dtype, parallel)))
    nnx.replace_by_pure_dict(state, nest({path: leaf for path, leaf in leaves.items() if path not in beside}) if beside else params)
    decoder = nnx.merge(graphdef, state)
    set_adapters(decoder, {path: leaves[path] for path in beside})
    return decoder
