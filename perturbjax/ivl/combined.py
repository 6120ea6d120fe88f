"""Models added up logit by logit: a base with a value network, and its relatives from the literature. Each is a ``LanguageModel``.

So whatever takes a model takes these: all tasks, cached generation with shrinking batches, shared prefixes, tensor parallelism, RandOpt.
All parts decode in lockstep inside one program, each with a cache of its own. z is a part's logits; the first part is the base B.

| rule | parts | logits |
|---|---|---|
| value | B, V | z_B + alpha map(z_V) (or as V's connection says) |
| proxy | B, A+, A- | z_B + alpha (z_A+ - z_A-): proxy-tuning, arXiv 2401.08565 |
| contrastive | B, A | log p_B - alpha log p_A where p_B >= cutoff max p_B, else none: contrastive decoding, arXiv 2210.15097 |

Emulated fine-tuning (arXiv 2310.12962) adds log-probabilities where proxy-tuning adds logits. The two differ by a constant at each
position, which no softmax sees, so it has no rule of its own. With a gate, what is added counts only where the entropy of p_B is above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from perturbjax.ivl.artifacts import ValueRecord
from perturbjax.ivl.byte_head import byte_map
from perturbjax.ivl.tokens import token_table
from perturbjax.ivl.value import ValueConfig, ValueNetwork
from perturbjax.ivl.vocabulary import VocabularyMap
from perturbjax.models.config import DecoderConfig
from perturbjax.models.vocabulary import MASKED, Vocabulary
from perturbjax.sharding import MODEL, ShardedDim

if TYPE_CHECKING:
    from perturbjax.models.attention import Past, Prefix
    from perturbjax.pretrained import Model

Rule = Literal["value", "proxy", "contrastive"]
NAMES = {"value": ("base", "value"), "proxy": ("base", "tuned", "untuned"), "contrastive": ("base", "amateur")}
"""Rule -> names of the parts, which are the top level of the parameters."""


@dataclass(frozen=True)
class CombinedConfig:
    """The static shape of models that are added up.

    Attributes:
        rule: how.
        base: shape of the first part.
        others: shapes of the other parts, in the order of ``NAMES``.
        alpha: weight of what is added.
        gate: entropy of the base's distribution in nats, above which something is added; None adds always.
        cutoff: of ``contrastive``: how likely a token must be to the base, as a fraction of its likeliest.
        vocabulary: from the value network's vocabulary, or from bytes, to the base's: how its logits count; None where they are one.
        reads: what the value network reads in place of the base's tokens, by a map from its vocabulary; None: the tokens.
    """

    rule: Rule
    base: DecoderConfig
    others: tuple[DecoderConfig | ValueConfig, ...]
    alpha: float = 1.0
    gate: float | None = None
    cutoff: float = 0.1
    vocabulary: VocabularyMap | None = None
    reads: VocabularyMap | None = None

    @property
    def max_positions(self) -> int:
        return min(self.base.max_positions, *(_decoder_of(other).max_positions for other in self.others))

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size

    @property
    def tied_head(self) -> bool:
        return self.base.tied_head or any(_decoder_of(other).tied_head for other in self.others)

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha {self.alpha}: a finite number is required")
        if self.gate is not None and math.isnan(self.gate):
            raise ValueError(f"gate {self.gate}: an entropy in nats is required, or None")
        if not 0 < self.cutoff <= 1:
            raise ValueError(f"cutoff {self.cutoff}: a fraction above 0 and at most 1 is required")
        for name, other in zip(NAMES[self.rule][1:], self.others, strict=True):
            if isinstance(other, DecoderConfig) and other.vocab_size != self.base.vocab_size:
                sizes = f"{other.vocab_size} and {self.base.vocab_size}"
                raise ValueError(f"{name}: it and the base have {sizes} rows of logits; they are added token by token")
        value = self.others[0]
        kind = None if self.vocabulary is None else self.vocabulary.kind
        if isinstance(value, ValueConfig) and (value.outputs == "bytes") != (kind == "byte"):
            raise ValueError(f"vocabulary {kind}: the value network is of {value.outputs}; bytes take a byte map, tokens another or none")
        if self.vocabulary is not None and isinstance(value, ValueConfig) and value.is_bound_to_vocabulary:
            reads = f"a {value.connection} value network reads or scales the base's logits"
            raise ValueError(f"vocabulary: {reads}, which are here those of other tokens")

    def partition(self, size: int) -> CombinedParallel | None:
        if size == 1:
            return None
        return CombinedParallel(size, tuple(part.partition(size) for part in (self.base, *self.others)))

    def build(self, params: Any, parallel: CombinedParallel | None = None) -> Combined:
        return Combined(self, params, parallel)


@dataclass(frozen=True)
class CombinedParallel:
    """Each part on the devices of the "model" axis, by its own layout."""

    size: int
    parts: tuple[Any, ...]

    def dims(self, config: CombinedConfig) -> dict[str, ShardedDim]:
        found = {}
        for name, part, layout in zip(NAMES[config.rule], (config.base, *config.others), self.parts, strict=True):
            found |= {f"{name}/{path}": dim for path, dim in layout.dims(_decoder_of(part)).items()}
        return found


class Combined:
    """Several models over their parameters, in the middle of a traced function; hidden states and caches are tuples, one item a part."""

    def __init__(self, config: CombinedConfig, params: Any, parallel: CombinedParallel | None = None):
        self.config = config
        layouts = parallel.parts if parallel else (None,) * (1 + len(config.others))
        names = NAMES[config.rule]
        self._base = config.base.build(params[names[0]], layouts[0])
        self._others: list[Any] = [
            other.build(params[name], layout) for name, other, layout in zip(names[1:], config.others, layouts[1:], strict=True)
        ]
        self.vocabulary: Vocabulary = self._base.vocabulary

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxT: jax.Array,
        prefix: Prefix | None = None,
        past: Past | None = None,
        lead: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Runs all parts on the same new tokens; see ``LanguageModel``."""
        prefixes = [None] * (1 + len(self._others)) if prefix is None else [prefix._replace(cache=cache) for cache in prefix.cache]
        pasts = [None] * (1 + len(self._others)) if past is None else [past._replace(cache=cache) for cache in past.cache]
        with jax.named_scope("base"):
            hidden, cache = self._base(tokens_BxT, positions_BxT, mask_BxTxT, prefixes[0], pasts[0], lead)
        found = [(hidden, cache)]
        for other, its_prefix, its_past in zip(self._others, prefixes[1:], pasts[1:], strict=True):
            with jax.named_scope("beside"):
                if isinstance(other, ValueNetwork):
                    before = (its_prefix, its_past, lead)
                    new = other(tokens_BxT, positions_BxT, mask_BxTxT, hidden, self._base.logits, *before, vocabulary=self.config.reads)
                else:
                    new = other(tokens_BxT, positions_BxT, mask_BxTxT, its_prefix, its_past, lead)
                found.append(new)
        return tuple(h for h, _ in found), tuple(c for _, c in found)

    def logits(self, hidden: Any) -> jax.Array:
        """Joined logits, float32 (..., V), of this device's tokens.

        Where a gate shuts out every position of the call, the heads of the other parts and the vocabulary map are skipped. Their layers
        are not: later tokens attend to the keys of this one.
        """
        config = self.config
        z_base = self._base.logits(hidden[0])
        if config.gate is None:
            return self._joined(z_base, hidden[1:])
        open_ = self.vocabulary.entropy(z_base) > config.gate
        return jax.lax.cond(open_.any(), lambda: jnp.where(open_[..., None], self._joined(z_base, hidden[1:]), z_base), lambda: z_base)

    def _joined(self, z_base: jax.Array, hidden: tuple[Any, ...]) -> jax.Array:
        config = self.config
        if config.rule == "value":
            value = config.others[0]
            assert isinstance(value, ValueConfig)
            return value.join(z_base, self._mapped(self._others[0].logits(hidden[0], z_base)), config.alpha)
        if config.rule == "proxy":
            return z_base + config.alpha * (self._others[0].logits(hidden[0]) - self._others[1].logits(hidden[1]))
        if config.rule == "contrastive":
            amateur = self._others[0].logits(hidden[0])
            plausible = z_base >= self.vocabulary.max(z_base) + jnp.log(config.cutoff)
            return jnp.where(plausible, z_base - config.alpha * amateur, MASKED)
        raise ValueError(f"rule {config.rule}: one of {', '.join(NAMES)} is required")

    def _mapped(self, z_value: jax.Array) -> jax.Array:
        """z_V as changes of the base's logits, of this device's tokens."""
        table = self.config.vocabulary
        if table is None:
            return z_value
        if not self.vocabulary.sharded:
            return table.apply(z_value, self.config.base.vocab_size)
        # The logits of one token are few: every device takes all of V's and keeps its own rows of the map.
        axis, whole = z_value.ndim - 1, z_value
        if table.kind != "byte":
            whole = jax.lax.all_gather(z_value, MODEL, axis=axis, tiled=True)[..., : self._others[0].vocabulary.size]
        mapped = table.apply(whole, self.config.base.vocab_size)
        missing = self.vocabulary.rows * self.vocabulary.devices - mapped.shape[-1]
        padded = jnp.pad(mapped, [(0, 0)] * axis + [(0, missing)])
        return jax.lax.dynamic_slice_in_dim(padded, self.vocabulary.start, self.vocabulary.rows, axis)

    def logits_at(self, hidden_QxD: Any, ids_QxC: jax.Array) -> jax.Array:
        """Joined logits of C chosen tokens: float32 (Q, C), the same on every device."""
        return self.vocabulary.take(self.logits(hidden_QxD), ids_QxC)

    def empty(self, rows: int, columns: int) -> tuple[Any, Any]:
        parts = [part.empty(rows, columns) for part in (self._base, *self._others)]
        return tuple(h for h, _ in parts), tuple(c for _, c in parts)


def _decoder_of(part: DecoderConfig | ValueConfig) -> DecoderConfig:
    return part.decoder if isinstance(part, ValueConfig) else part


def _check_tokens(base: Model, value: ValueRecord, vocabulary: VocabularyMap | None) -> None:
    table = token_table(base.tokenizer)
    if vocabulary is not None:
        vocabulary.check(vocabulary.value_fingerprint, table.vocabulary if vocabulary.kind == "identity" else table.fingerprint)
    elif table.vocabulary != value.vocabulary:
        raise ValueError(
            f"vocabulary None: the value network speaks the tokens of {value.base}, {base.name} has others; give a map between them"
        )


def combine(
    base: Model,
    value: ValueConfig | ValueRecord,
    params: Any,
    alpha: float = 1.0,
    gate: float | None = None,
    vocabulary: VocabularyMap | None = None,
) -> Model:
    """A base with a value network's logits added to its own, as a model that every task, engine and search takes.

    Args:
        base: the model B; it is not copied and never changed.
        value: the value network, as ``load_value`` reads it; or its shape alone, which does not say which tokens it speaks.
        params: its parameters.
        alpha: weight of its logits.
        gate: entropy of B's distribution in nats above which they count; None: always.
        vocabulary: from the value network's vocabulary to B's, None where they are one. A network of bytes only reads by it.

    Raises:
        ValueError: without a map, other tokens (of a shape alone: another number of them); a map to other tokens than the base's; or a map
            and a connection that reads the base's logits, which are those of other tokens.
    """
    if isinstance(value, ValueRecord):
        _check_tokens(base, value, vocabulary)
        value = value.config
    if vocabulary is None and value.decoder.vocab_size != base.config.vocab_size:
        sizes = f"{value.decoder.vocab_size} and {base.config.vocab_size} tokens"
        raise ValueError(f"vocabulary None: the value network and the base have {sizes}; give a map between them")
    counts = byte_map(base.tokenizer) if value.outputs == "bytes" else vocabulary
    config = CombinedConfig("value", base.config, (value,), alpha, gate, vocabulary=counts, reads=vocabulary)
    return replace(base, name=f"{base.name}+value", config=config, params={"base": base.params, "value": params})
