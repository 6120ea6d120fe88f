"""The loss of a value network (arXiv 2410.21027): cross-entropy of the joined logits on the responses, the base held fixed, and a norm.

    loss = mean over learned tokens of  CE(join(stop_gradient(z_base), z_V), token) + penalty * mean over V of |z_V|^power

For a network that speaks bytes, z_base are the base's log-probabilities of the next byte, or STOP, where a token ends, and the token is
its first byte. The norm keeps a value network from learning what only its own base needs, and so what it does elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.ivl.byte_head import BYTES, STOP, byte_marginals
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.ivl.value import CASCADES, ValueConfig
from perturbjax.models.config import DecoderConfig, forward_flops
from perturbjax.train.language import sum_over_queries
from perturbjax.train.rows import Rows, at_queries, segment_mask
from perturbjax.train.step import Loss, Sums, cast, cross_entropy


def value_loss(
    value: ValueConfig,
    base: DecoderConfig,
    dtype: Any,
    penalty: float = 1.0,
    power: int = 1,
    remat: bool = False,
    cached: LogitsFormat | None = None,
    classes: np.ndarray | None = None,
) -> Loss:
    """A loss of (value params, base params, packed rows), to be used with ``train.fit``.

    Its sums: ``loss``; ``cross_entropy`` of the joined logits and ``base_cross_entropy`` of the base's own; ``norm``, mean |z_V|^power.

    Args:
        value: of the network that is trained.
        base: of the frozen base.
        dtype: what the trained weights are used in.
        penalty: lambda.
        power: p, 1 or 2.
        remat: compute the layers of the value network again in the backward pass.
        cached: how the batch holds the base's logits at the learned positions, (B, Q, ...) of its arrays. The base is then not run and its
            params are not read.
        classes: of a network that speaks bytes: what each token of the base begins with (``byte_head.token_classes``). Learned tokens that
            are no part of a text are left out.

    Raises:
        ValueError: a network of bytes without classes; cached logits for a cascade, which reads those of all positions.
    """
    if value.outputs == "bytes" and classes is None:
        raise ValueError("classes None: a value network of bytes needs what each token of the base begins with")
    if cached is not None and value.connection in CASCADES:
        raise ValueError(f"cached: a {value.connection} reads the base's logits at all positions, not at the learned ones alone")

    def loss(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> Sums:
        network = value.build(cast(params, dtype))
        mask = segment_mask(batch["segments"])
        whole, at_base, logits_of = _base_states(base, frozen, batch, mask, cached)
        hidden, _ = network(batch["tokens"], batch["positions"], mask, whole, logits_of, remat=remat)
        hidden = jax.tree.map(lambda h: at_queries(h, batch["query"]), hidden)

        def sums(hidden: Any, at_base: Any, labels: jax.Array, weights: jax.Array) -> Sums:
            z_base = jax.lax.stop_gradient(logits_of(at_base)).astype(jnp.float32)
            z_value = network.logits(hidden, z_base)
            if classes is not None:
                z_base, labels = byte_marginals(z_base, classes)[0], jnp.asarray(classes)[labels]
                weights, labels = jnp.where(labels <= STOP, weights, 0.0), jnp.minimum(labels, STOP)
            norm = jnp.mean(jnp.abs(z_value) if power == 1 else jnp.square(z_value), axis=-1)
            joined = cross_entropy(value.join(z_base, z_value), labels)
            terms = {
                "loss": joined + penalty * norm,
                "cross_entropy": joined,
                "base_cross_entropy": cross_entropy(z_base, labels),
                "norm": norm,
            }
            return {name: jnp.sum(weights * term) for name, term in terms.items()} | {"weight": jnp.sum(weights)}

        return sum_over_queries(sums, hidden, at_base, batch["labels"], batch["weights"])

    return loss


def _base_states(
    base: DecoderConfig, frozen: Any, batch: dict[str, jax.Array], mask: jax.Array, cached: LogitsFormat | None
) -> tuple[Any, Any, Callable[[Any], jax.Array]]:
    """What is known of the base: its hidden states at all positions, None where its logits are ``cached``; what there is of them at the
    learned positions; and how that becomes logits."""
    if cached is not None:
        return None, {name: batch[name] for name in cached.arrays}, cached.decode
    model = base.build(frozen)
    whole, _ = model(batch["tokens"], batch["positions"], mask)
    whole = jax.lax.stop_gradient(whole)
    return whole, at_queries(whole, batch["query"]), model.logits


def pass_flops(value: ValueConfig, bases: Sequence[DecoderConfig], rows: Rows) -> float:
    """Floating-point operations of one pass over packed rows, padding aside: forward and twice as much backward of the value network,
    forward of the bases, of which a step runs one. What ``remat`` computes again is not counted, nor how a cascade mixes embeddings.

    Args:
        value: of the network that is trained.
        bases: that steps run in turn; none where their logits are in files.
        rows: what is passed over.
    """
    learned, shape = int((rows.arrays["weights"] > 0).sum()), (len(rows), rows.tokens / len(rows))
    trained, heads = forward_flops(value.decoder, *shape, learned), learned
    if value.outputs == "bytes":
        trained -= 2 * (value.decoder.vocab_size - BYTES - 1) * value.decoder.hidden_size * learned
    if value.is_probe:
        trained = 2 * 2 * value.decoder.vocab_size * value.decoder.hidden_size * learned
    if value.connection in CASCADES:
        heads = rows.tokens
    return 3 * trained + sum(forward_flops(base, *shape, heads) for base in bases) / max(1, len(bases))
