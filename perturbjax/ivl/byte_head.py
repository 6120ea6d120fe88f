"""A value network whose head has 257 outputs, the 256 bytes and STOP, in place of one for each token: it fits every base without alignment.

Training needs the frozen model A as a model of bytes, and use needs bytes turned into tokens of the base B.

*A as a model of bytes.* Let a text be written up to a token boundary, with r the bytes of the current token so far. The next token u,
given that it begins with r, has u[len(r)] as its next byte, ends here if u = r, and is a stop token only if r is empty: ``byte_marginals``
sums A's probabilities by that class, in one pass over A's logits. It is exact given the tokenization of what lies before. Given only the
*bytes* before, A may have written them otherwise, with a token that began earlier and reaches over the boundary. The tree of all token
sequences that cover the bytes counts these too (the valid covering tree, arXiv 2506.14123): ``covering_byte_log_probs``, on the host, one
evaluation of A for each inner node. In teacher-forced training the tokenization is known, so the first form is the target.

*Bytes to tokens.* A token's change would be the sum over its bytes of the head's outputs after each, which takes as many evaluations as
the token has bytes. One evaluation gives the first byte's: ``byte_map`` gives each token of B the change of its first byte, and stop tokens
that of STOP. A model's byte marginals at a boundary then become exactly softmax(log marginal + z), what the head was trained for. The
limit: tokens with one first byte keep their odds among each other. What V knows about later bytes is not used: " the" and " a" both begin
with a space, so they cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.ivl.tokens import TEXT_END, TURN_END, token_table
from perturbjax.ivl.vocabulary import VocabularyMap, at_least_float32
from perturbjax.tree import digest

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer

BYTES = 256
STOP = 256
"""The head's output that ends the reply."""
END, OUT = 257, 258
"""Classes of tokens that are no output: the token ends with the bytes emitted so far; it is no continuation of them."""

FINGERPRINT = digest("256 bytes and stop")
"""What a byte head's map has as fingerprint of its value network."""


def byte_map(base: Tokenizer) -> VocabularyMap:
    """The map from a byte head to B: each token gets the change of its first byte, stop tokens that of STOP, other special ones none.

    Its ``apply`` takes (..., 257). Its limit is in this module's docstring.
    """
    table = token_table(base)
    classes = token_classes(base)
    matched = classes <= STOP
    return VocabularyMap(
        kind="byte",
        indices=np.where(matched, classes, 0)[:, None],
        weights=matched[:, None].astype(np.float32),
        exact=np.array([text is not None and len(text) == 1 for text in table.texts]) | (classes == STOP),
        valid=np.ones(BYTES + 1, bool),
        value_fingerprint=FINGERPRINT,
        base_fingerprint=table.fingerprint,
    )


def token_classes(tokenizer: Tokenizer, emitted: bytes = b"") -> np.ndarray:
    """int32 (v,): the next byte of each token after those emitted, STOP, END or OUT.

    Special tokens that stop nothing are OUT: they are no part of a text.
    """
    table = token_table(tokenizer)
    return classes_of(table.texts, [index for index, role in table.roles.items() if role in (TURN_END, TEXT_END)], emitted)


def classes_of(texts: Sequence[bytes | None], stop_ids: Collection[int], emitted: bytes = b"") -> np.ndarray:
    """As ``token_classes``, of tokens given as byte strings, None for special ones."""
    size = len(emitted)

    def of(text: bytes | None) -> int:
        if not text or not text.startswith(emitted):
            return OUT
        return text[size] if len(text) > size else END

    classes = np.array([of(text) for text in texts], np.int32)
    # Between two tokens only: inside one the text cannot stop.
    classes[list(stop_ids)] = OUT if emitted else STOP
    return classes


def byte_marginals(logits: jax.Array, classes: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A's next-token distribution as one over the next byte, given the bytes that the classes were made for.

    Args:
        logits: (..., v') finite next-token logits, v' >= v; those beyond v are ignored.
        classes: int32 (v,) of ``token_classes``.

    Returns:
        (log-probabilities (..., 257) of the next byte and STOP, log-probability (...) that the token ends here). Together they sum to 1;
        what no token offers is -inf. float32 at least, and exact however small the probability of a class or of the bytes emitted.

    Raises:
        ValueError: no token continues the bytes emitted, or too few logits.
    """
    if logits.shape[-1] < len(classes):
        raise ValueError(f"logits {logits.shape}: at least {len(classes)} of them are required")
    if (classes >= OUT).all():
        raise ValueError("classes: no token begins with the bytes emitted")
    wide = at_least_float32(logits[..., : len(classes)])
    nothing = jnp.full((*wide.shape[:-1], OUT + 1), -jnp.inf, wide.dtype)
    # Each class has its own largest logit as its zero: that of all tokens would lose classes whose probability underflows.
    top = jax.lax.stop_gradient(nothing.at[..., classes].max(wide))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    sums = jnp.zeros_like(top).at[..., classes].add(jnp.exp(wide - top.at[..., classes].get(mode="promise_in_bounds")))
    some = sums > 0
    totals = jnp.where(some, top + jnp.log(jnp.where(some, sums, 1.0)), -jnp.inf)[..., :OUT]
    log_probs = totals - jax.nn.logsumexp(totals, axis=-1, keepdims=True)
    return log_probs[..., :END], log_probs[..., END]


def covering_byte_log_probs(
    next_log_probs: Callable[[tuple[int, ...]], np.ndarray],
    texts: Sequence[bytes | None],
    stop_ids: Collection[int],
    prefix: bytes,
    valid: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> np.ndarray:
    """Exact distribution of the byte after ``prefix``, whatever tokens spell it: the covering tree of arXiv 2506.14123, on the host.

    P(b | prefix) is the probability of all token sequences whose bytes begin with prefix + b, over that of those that begin with prefix.
    A sequence counts at its first token that reaches beyond the prefix; the sequences before it that spell a part of the prefix are the
    inner nodes of the tree, each one evaluation of A. Without ``valid`` there are exponentially many: for short prefixes, as an oracle.

    Args:
        next_log_probs: sequence of tokens after the context -> (v,) log-probabilities of the next one.
        texts: (v,) bytes of each token, None for special ones.
        stop_ids: tokens that end the text.
        prefix: bytes since the context, which ends between two tokens.
        valid: sequence -> bool (v,), the next tokens with which A's tokenizer could have written it. None allows all.

    Returns:
        float64 (257,) log-probabilities of the bytes and STOP.

    Raises:
        ValueError: the prefix has probability 0.
    """
    totals = np.zeros(END)
    nodes: list[tuple[tuple[int, ...], int, float]] = [((), 0, 0.0)]
    while nodes:
        sequence, done, log_weight = nodes.pop()
        rest = prefix[done:]
        log_probs = log_weight + np.asarray(next_log_probs(sequence), np.float64)
        if valid is not None:
            log_probs = np.where(valid(sequence), log_probs, -np.inf)
        classes = classes_of(texts, stop_ids, rest)
        reached = classes < END
        totals += np.bincount(classes[reached], np.exp(log_probs[reached]), minlength=END)
        for token, text in enumerate(texts):
            if text and token not in stop_ids and rest.startswith(text) and log_probs[token] > -np.inf:
                nodes.append(((*sequence, token), done + len(text), float(log_probs[token])))
    if not totals.sum() > 0:
        raise ValueError(f"prefix {prefix!r} has probability 0")
    with np.errstate(divide="ignore"):
        return np.log(totals / totals.sum())
