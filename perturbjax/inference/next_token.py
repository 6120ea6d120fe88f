"""What noise does to the next token after a prompt: the change of its distribution, of the hidden state before the head, and of the argmax.

No label and no reply is read. Prompts are packed as those of a multiple-choice task are, whatever the kind of the task. The base's logits
are computed once and kept, so a candidate costs one forward pass of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.inference.engine import SLOT_TOKENS
from perturbjax.inference.packing import Packing, ScoringExample, common_prefix, pack
from perturbjax.inference.programs import packed_mask
from perturbjax.inference.prompts import encode_prompts
from perturbjax.models.language_model import LanguageModel, ModelConfig
from perturbjax.noise import Candidate, Noise
from perturbjax.pretrained import Model
from perturbjax.scoring import ChunkProgram
from perturbjax.tasks.base import Example, Task, Template

_ANY_TOKEN = ((0,),)  # of a prompt only the place of its next token matters


@dataclass(frozen=True)
class Change:
    """What n candidates change on E prompts.

    Attributes:
        kl: (n, E) divergence KL(base || candidate) of the next-token distributions, in nats.
        hidden: (n, E) squared length of the change of the hidden state that the head reads, over the mean squared length of the base's.
        argmax: (n, E) bool, the most likely next token is another.
    """

    kl: np.ndarray
    hidden: np.ndarray
    argmax: np.ndarray


class NextToken:
    """Measures candidates on the prompts of some examples.

    Args:
        model: the base; its params are put on the mesh once and never written.
        task: whose prompts are read.
        examples: E of them.
        template: of their prompts.
        mesh: as of an ``Engine``; all devices along "data" by default.
        chunk: candidates of one compiled call.

    Attributes:
        shapes: the whole parameters, as shapes and types.
        prompts: E.

    Raises:
        InputError: a prompt is longer than the model's context.
    """

    def __init__(self, model: Model, task: Task, examples: Sequence[Example], template: Template, mesh: Mesh | None = None, chunk: int = 4):
        self._config, self._mesh, self._chunk = model.config, mesh or sharding.make_mesh(), chunk
        self._parallel = model.config.partition(self._mesh.shape[sharding.MODEL])
        self._params = sharding.shard_params(model.params, self._mesh, self._parallel.dims(model.config) if self._parallel else None)
        ids, _ = encode_prompts(model, task, examples, template, 1)
        length = common_prefix(ids)
        self._packings = pack(ids[0][:length], [ScoringExample(prompt[length:], _ANY_TOKEN) for prompt in ids], SLOT_TOKENS)
        self.shapes, self.prompts = self._params.whole(), len(examples)
        program = ChunkProgram(base_values(self._config, self._parallel), self._params, None, self._mesh, 1)
        self._data = []
        for packing in self._packings:
            data = _used(packing)
            self._data.append(data | {"base": jax.tree.map(lambda leaf: leaf[0], program(Candidate.base(1), data))})
        self._programs: dict[Noise, ChunkProgram] = {}

    def base_probs(self) -> np.ndarray:
        """(E, V) float32: the base's distribution of the next token after each prompt."""
        found = np.zeros((self.prompts, self._config.vocab_size), np.float32)
        for packing, data in zip(self._packings, self._data, strict=True):
            slot, query, example, _ = packing.owner.T
            found[packing.examples[example]] = jax.nn.softmax(data["base"][2][slot, query])
        return found

    def measure(self, candidates: Candidate, noise: Noise) -> Change:
        """What batched candidates (leading axis n) of this noise change. The first call with a noise compiles."""
        if noise not in self._programs:
            fn = change_of(self._config, self._parallel)
            self._programs[noise] = ChunkProgram(fn, self._params, noise, self._mesh, self._chunk, strategy="lazy")
        program = self._programs[noise]
        change = np.zeros((3, candidates.index.shape[0], self.prompts), np.float64)
        norm = np.zeros(self.prompts, np.float64)
        for packing, data in zip(self._packings, self._data, strict=True):
            slot, query, example, _ = packing.owner.T
            number = packing.examples[example]
            change[:, :, number] = [values[:, slot, query] for values in program(candidates, data)]
            norm[number] = data["base"][1][slot, query]
        return Change(change[0], change[1] / norm.mean(), change[2] > 0)


def _used(packing: Packing) -> dict[str, np.ndarray]:
    """The arrays of a packing without its padding slots: logits of all tokens are kept for each slot, and no other batch comes."""
    used = packing.arrays["num_valid"]
    return {name: array if name == "lead" else array[:used] for name, array in packing.arrays.items() if name != "num_valid"}


def base_values(config: ModelConfig, parallel: Any = None):
    """The function of the base that ``ChunkProgram`` runs on the arrays of a ``Packing``: hidden states (S, Q, ...), their squared lengths
    (S, Q), and logits (S, Q, V), all float32."""

    def fn(params: Any, _, data: dict[str, Any]) -> tuple[Any, jax.Array, jax.Array]:
        model = config.build(params, parallel)

        def slot(arrays: dict[str, Any]) -> tuple[Any, jax.Array, jax.Array]:
            hidden, logits = _next_tokens(model, arrays, data["lead"])
            return hidden, _square(hidden), logits

        return jax.lax.map(slot, {name: array for name, array in data.items() if name != "lead"})

    return fn


def change_of(config: ModelConfig, parallel: Any = None):
    """The function of one candidate: KL, squared length of the hidden change and whether the argmax is another, float32 (S, Q) each, from
    the arrays of a ``Packing`` and the ``base`` that ``base_values`` gave for them."""

    def fn(params: Any, _, data: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = config.build(params, parallel)

        def slot(arrays: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
            hidden, logits = _next_tokens(model, arrays, data["lead"])
            base_hidden, _, base_logits = arrays["base"]
            moved = _square(jax.tree.map(jnp.subtract, hidden, base_hidden))
            return kl(base_logits, logits), moved, (logits.argmax(-1) != base_logits.argmax(-1)).astype(jnp.float32)

        return jax.lax.map(slot, {name: array for name, array in data.items() if name != "lead"})

    return fn


def kl(logits: jax.Array, other: jax.Array) -> jax.Array:
    """KL(p || q) of the softmaxes p and q of logits (..., V), in nats, accurate where they are close.

    With d = other - logits, less its mean under p, it is log E_p[exp(d)], whose first order is 0 and is left out of the sum.
    """
    p = jax.nn.softmax(logits, axis=-1)
    change = other - logits
    change = change - (p * change).sum(axis=-1, keepdims=True)
    return jnp.log1p((p * (jnp.expm1(change) - change)).sum(axis=-1))


def _next_tokens(model: LanguageModel, arrays: dict[str, Any], lead: jax.Array) -> tuple[Any, jax.Array]:
    """Hidden states and logits of all tokens at the queries of one slot, float32."""
    rows = jnp.arange(arrays["tokens"].shape[0])
    leads = (rows > 0)[:, None] & lead[None]
    mask = packed_mask(arrays["example"], arrays["branch"])
    hidden, _ = model(arrays["tokens"], arrays["positions"], mask, lead=leads if len(rows) > 1 else None)
    hidden = jax.tree.map(lambda h: h.reshape(-1, h.shape[-1])[arrays["query"]], hidden)
    logits = model.logits(hidden)
    if model.vocabulary.sharded:  # every device gets all of them
        everything = jnp.arange(model.vocabulary.size, dtype=jnp.int32)
        logits = model.vocabulary.take(logits, jnp.broadcast_to(everything, (logits.shape[0], model.vocabulary.size)))
    return jax.tree.map(lambda h: h.astype(jnp.float32), hidden), logits


def _square(hidden: Any) -> jax.Array:
    """Squared lengths (Q,) of hidden states (Q, ...), summed over the parts of a model of several."""
    return sum((jnp.square(part).sum(axis=-1) for part in jax.tree.leaves(hidden)), jnp.zeros(()))
