"""What is stored of a base's logits, how they come back from it, and how far what comes back is from what was stored.

Axis letters: V vocabulary, K stored tokens; ... are any leading axes. log p = z - logsumexp(z) is rounded to bfloat16, and not z: the
likelier a token, the smaller its log p and the error of it.

| array of a position | all of V | K tokens |
|---|---|---|
| ``base_log_probs``, bfloat16 | (V,), log p of every token | (K,), of the K likeliest, in falling order |
| ``base_logsumexp``, float32 | () | () |
| ``base_tokens``, int32 | | (K,), which these are |
| ``base_log_rest``, float32 | | (), log of the probability of all other tokens together |

z = log p + logsumexp. The other tokens get equal parts of the rest, log p = log_rest - log(V - K): what they have together is right, and
which of them has how much is lost.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

DTYPE = "bfloat16"
"""Of stored log-probabilities; logsumexp and the rest are float32."""


@dataclass(frozen=True)
class LogitsFormat:
    """The arrays of one position.

    Attributes:
        vocab_size: V.
        k: K, at most V; None: all of V.
    """

    vocab_size: int
    k: int | None = None

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> shape and dtype, in the order in which they lie in a file."""
        kept, single = (self.k or self.vocab_size,), np.dtype(np.float32)
        found = {"base_log_probs": (kept, np.dtype(ml_dtypes.bfloat16)), "base_logsumexp": ((), single)}
        return found if self.k is None else found | {"base_tokens": (kept, np.dtype(np.int32)), "base_log_rest": ((), single)}

    @property
    def nbytes(self) -> int:
        """Of one position."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.arrays.values())

    def encode(self, z: jax.Array) -> dict[str, jax.Array]:
        """The arrays of logits (..., V)."""
        z = z.astype(jnp.float32)
        total = jax.nn.logsumexp(z, axis=-1)
        if self.k is None:
            return {"base_log_probs": _rounded(z - total[..., None]), "base_logsumexp": total}
        largest, tokens = jax.lax.top_k(z, self.k)
        others = jnp.put_along_axis(z, tokens, -jnp.inf, axis=-1, inplace=False)
        rest = {"base_tokens": tokens, "base_log_rest": jax.nn.logsumexp(others, axis=-1) - total}
        return {"base_log_probs": _rounded(largest - total[..., None]), "base_logsumexp": total} | rest

    def decode(self, stored: dict[str, jax.Array]) -> jax.Array:
        """Logits (..., V), float32, of the arrays."""
        log_probs = stored["base_log_probs"].astype(jnp.float32)
        if self.k is not None:
            each = stored["base_log_rest"] - math.log(max(1, self.vocab_size - self.k))
            rest = jnp.broadcast_to(each[..., None], (*each.shape, self.vocab_size))
            log_probs = jnp.put_along_axis(rest, stored["base_tokens"], log_probs, axis=-1, inplace=False)
        return log_probs + stored["base_logsumexp"][..., None]

    def errors(self, z: jax.Array, stored: dict[str, jax.Array], labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """KL(softmax of logits || softmax of what is stored of them) in nats, and by how much log p of the label is off: both (...)."""
        live, found = jax.nn.log_softmax(z.astype(jnp.float32)), jax.nn.log_softmax(self.decode(stored))
        off = live - found
        # As sum p (log p - log q) - p + q, whose terms are not negative; where p and q are close, without the cancellation.
        near = jnp.clip(off, -0.5, 0.5)
        close, far = jnp.exp(live) * (near + jnp.expm1(-near)), jnp.exp(live) * (off - 1) + jnp.exp(found)
        kl = jnp.sum(jnp.where(near == off, close, far), axis=-1)
        return kl, jnp.abs(jnp.take_along_axis(off, labels[..., None], axis=-1)[..., 0])


def _rounded(x: jax.Array) -> jax.Array:
    # XLA may leave out a conversion to bfloat16 and back, and the error would be measured as zero; it may not leave out this.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)
