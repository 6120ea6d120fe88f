"""Value networks: what post-training does to the logits of a base, as a small model of its own (inverse value learning, arXiv 2410.21027).

Axis letters: B rows, T tokens, D width, V vocabulary (the value network's and the base's that it is trained on are one), Q positions.

    z_post = z_base + alpha z_V          (all connections but multiplicative)
    z_post = z_base (1 + alpha z_V)      (multiplicative; the 1 is ours: so an output of zero is the base here too)

| connection | what the value network sees |
|---|---|
| residual | the tokens |
| cascade | softmax(z_base) E_V in place of the tokens' embeddings, E_V being its own embedding |
| cascade_plus | both, added |
| multiplicative | the tokens |
| linear, mlp | z_base alone, at one position: through a bottleneck of its width, without and with a SiLU (weak baselines) |

A residual network may speak bytes: a head of 257 outputs in place of one for each token, added to the base's log-probabilities of the next
byte (``byte_head``), which are one thing for every vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.ivl.byte_head import BYTES
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.vocabulary import Vocabulary
from perturbjax.tree import leaf_paths, nest

if TYPE_CHECKING:
    from perturbjax.ivl.vocabulary import VocabularyMap
    from perturbjax.models.attention import Past, Prefix
    from perturbjax.models.decoder import Decoder
    from perturbjax.models.partition import TensorParallel

Outputs = Literal["tokens", "bytes"]
Connection = Literal["residual", "cascade", "cascade_plus", "multiplicative", "linear", "mlp"]
CONNECTIONS: tuple[Connection, ...] = get_args(Connection)
PROBES = ("linear", "mlp")
CASCADES = ("cascade", "cascade_plus")
CASCADE_LOGITS = 1024
"""Positions whose base logits a cascade has in memory at a time."""


@dataclass(frozen=True)
class ValueConfig:
    """The static shape of a value network.

    Attributes:
        decoder: its sizes; a probe has ``vocab_size`` and, as the width of its bottleneck, ``hidden_size`` of them alone.
        connection: how it meets the base.
        outputs: what its logits are of: all tokens, or the 256 bytes and STOP. For bytes ``decoder`` has a tied head, which is not used.
    """

    decoder: DecoderConfig
    connection: Connection = "residual"
    outputs: Outputs = "tokens"

    def __post_init__(self) -> None:
        if self.outputs == "bytes" and self.connection != "residual":
            raise ValueError(f"outputs bytes: connection residual is required, not {self.connection}")

    @property
    def is_probe(self) -> bool:
        return self.connection in PROBES

    @property
    def needs_base_logits(self) -> bool:
        """Whether its input, and not only its output, depends on the base."""
        return self.is_probe or self.connection in CASCADES

    @property
    def is_bound_to_vocabulary(self) -> bool:
        """Whether it reads or scales the logits of tokens, so that it fits no base with another vocabulary."""
        return self.needs_base_logits or self.connection == "multiplicative"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every parameter -> its shape."""
        size, width = self.decoder.vocab_size, self.decoder.hidden_size
        if self.is_probe:
            return {"down/kernel": (size, width), "up/kernel": (width, size)}
        return param_shapes(self.decoder) | ({"byte_head/kernel": (width, BYTES + 1)} if self.outputs == "bytes" else {})

    def partition(self, size: int) -> TensorParallel | None:
        if self.is_probe and size > 1:
            raise ValueError(f"connection {self.connection}: a probe is not sharded over a model axis")
        return self.decoder.partition(size)

    def build(self, params: Any, parallel: TensorParallel | None = None) -> ValueNetwork:
        return ValueNetwork(self, params, parallel)

    def join(self, base_logits: jax.Array, value_logits: jax.Array, alpha: float = 1.0) -> jax.Array:
        """z_post of z_base and z_V, both (..., V)."""
        if self.connection == "multiplicative":
            return base_logits * (1.0 + alpha * value_logits)
        return base_logits + alpha * value_logits


class ValueNetwork:
    """A value network over its parameters, in the middle of a traced function."""

    def __init__(self, config: ValueConfig, params: Any, parallel: TensorParallel | None = None):
        self.config, self._params = config, params
        decoder = {name: leaf for name, leaf in params.items() if name != "byte_head"} if config.outputs == "bytes" else params
        self._decoder: Decoder | None = None if config.is_probe else config.decoder.build(decoder, parallel)
        self.vocabulary = self._decoder.vocabulary if self._decoder is not None else Vocabulary(config.decoder.vocab_size, 1)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxT: jax.Array,
        base_hidden: Any,
        base_logits: Callable[[Any], jax.Array] | None,
        prefix: Prefix | None = None,
        past: Past | None = None,
        lead: jax.Array | None = None,
        remat: bool = False,
        vocabulary: VocabularyMap | None = None,
    ) -> tuple[Any, Any]:
        """Hidden states (B, T, D) and new keys and values, as a ``LanguageModel``'s; () and () of a probe, which looks at nothing before.

        Args:
            base_hidden: the base's hidden states of the same tokens, a pytree with leading (B, T); read by cascades.
            base_logits: hidden states (..., D) -> the base's logits (..., V); read by cascades.
            vocabulary: the map from its own vocabulary to that of the tokens; None where they are one.
        """
        if self._decoder is None:
            return (), ()
        inputs = None
        if self.config.connection in CASCADES:
            assert base_logits is not None
            inputs = self._mixed(base_hidden, base_logits)
            if self.config.connection == "cascade_plus":
                inputs = inputs + self.vocabulary.look_up(self._decoder.embed, tokens_BxT)
        elif vocabulary is not None:
            with jax.named_scope("embed"):
                inputs = vocabulary.read(functools.partial(self.vocabulary.look_up, self._decoder.embed), tokens_BxT)
        return self._decoder(tokens_BxT, positions_BxT, mask_BxTxT, prefix, past, lead, remat, inputs)

    def _mixed(self, base_hidden: Any, base_logits: Callable[[Any], jax.Array]) -> jax.Array:
        """softmax(z_base) E_V at every position: (B, T, D), the logits of some positions in memory at a time."""
        assert self._decoder is not None
        table = self._decoder.embed.embedding[...]
        b, t = jax.tree.leaves(base_hidden)[0].shape[:2]

        def some(hidden: Any) -> jax.Array:
            return self.vocabulary.mean_of(table, jax.lax.stop_gradient(base_logits(hidden)))

        width = next(n for n in range(min(t, max(1, CASCADE_LOGITS // b)), 0, -1) if t % n == 0)
        if width == t:
            return some(base_hidden)
        parts = jax.tree.map(lambda h: h.reshape(b, t // width, width, -1).swapaxes(0, 1), base_hidden)
        return jax.lax.map(jax.checkpoint(some), parts).swapaxes(0, 1).reshape(b, t, -1)

    def logits(self, hidden: Any, base_logits: jax.Array) -> jax.Array:
        """z_V, float32 (..., V) or (..., 257), of hidden states (..., D) and the base's logits at the same positions, which only probes
        read. Of tokens it is this device's part, of bytes the whole."""
        if self.config.outputs == "bytes":
            with jax.named_scope("head"):
                return jnp.einsum("...d,do->...o", hidden, self._params["byte_head"]["kernel"], preferred_element_type=jnp.float32)
        if self._decoder is not None:
            return self._decoder.logits(hidden)
        with jax.named_scope("probe"):
            narrow = jax.nn.log_softmax(base_logits) @ self._params["down"]["kernel"].astype(jnp.float32)
            if self.config.connection == "mlp":
                narrow = jax.nn.silu(narrow)
            return narrow @ self._params["up"]["kernel"].astype(jnp.float32)

    def empty(self, rows: int, columns: int) -> tuple[Any, Any]:
        return ((), ()) if self._decoder is None else self._decoder.empty(rows, columns)


def make_value(
    base: DecoderConfig,
    base_params: Any,
    connection: Connection = "residual",
    layers: int | None = None,
    from_base: bool = True,
    zero_head: bool = True,
    seed: int = 0,
    outputs: Outputs = "tokens",
) -> tuple[ValueConfig, dict[str, Any]]:
    """A value network to begin with.

    Args:
        base: the shape of the base that it is trained on.
        base_params: its parameters.
        connection: how it meets the base.
        layers: how many layers it has; all of the base's when left out. The last norm is the base's.
        from_base: begin with the base's first layers; else with random weights (normal, 0.02, as in GPT-2).
        zero_head: a head of its own that begins at zero, so that step 0 is exactly the base. Without it the head is the base's, and a value
            network that begins as the whole base doubles the logits.
        seed: of random weights.
        outputs: of the head. The base has no head of bytes, so ``zero_head`` False is random weights there.

    Returns:
        Its config, and its parameters as nested dicts of float32 numpy arrays.

    Raises:
        ValueError: more layers than the base has, or bytes with another connection than residual.
    """
    layers = base.num_layers if layers is None else layers
    if not 1 <= layers <= base.num_layers:
        raise ValueError(f"layers {layers}: 1 to {base.num_layers}, the number that the base has, is required")
    rng = np.random.default_rng(seed)
    if connection in PROBES:
        d, v = base.hidden_size, base.vocab_size
        down = rng.normal(0, 1 / math.sqrt(v), (v, d)).astype(np.float32)
        up = np.zeros((d, v), np.float32) if zero_head else rng.normal(0, 0.02, (d, v)).astype(np.float32)
        return ValueConfig(base, connection), {"down": {"kernel": down}, "up": {"kernel": up}}
    of_bytes = outputs == "bytes"
    decoder = dataclasses.replace(base, num_layers=layers, tied_head=of_bytes or (base.tied_head and not zero_head))
    leaves = leaf_paths(base_params)
    flat: dict[str, np.ndarray] = {}
    for path, shape in param_shapes(decoder).items():
        if path == "head/kernel" and zero_head:
            flat[path] = np.zeros(shape, np.float32)
        elif from_base:
            leaf = leaves[path]
            if path.startswith("layers/"):
                leaf = leaf[(slice(layers), *[slice(None)] * (leaf.ndim - 1))]
            flat[path] = np.asarray(leaf, np.float32)
        elif path.endswith("/scale"):
            flat[path] = np.full(shape, 1 - decoder.norm_offset, np.float32)
        else:
            flat[path] = np.zeros(shape, np.float32) if path.endswith("/bias") else rng.normal(0, 0.02, shape).astype(np.float32)
    if of_bytes:
        shape = (base.hidden_size, BYTES + 1)
        flat["byte_head/kernel"] = np.zeros(shape, np.float32) if zero_head else rng.normal(0, 0.02, shape).astype(np.float32)
    return ValueConfig(decoder, connection, outputs), nest(flat)
