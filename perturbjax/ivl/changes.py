"""Which tokens of its replies a value network chose: base and joined logits side by side, after the same text.

The replies are put through the combined model once more, all tokens at a time, packed into rows as demonstrations are. Its hidden states
hold those of the base, so the base's own logits cost one more head and no second pass.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.inference.decode import NO_TOKEN
from perturbjax.ivl.combined import NAMES, CombinedConfig
from perturbjax.ivl.results import TokenChanges
from perturbjax.noise import Candidate
from perturbjax.pretrained import Model
from perturbjax.scoring import ChunkProgram
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.rows import at_queries, pack_rows, segment_mask

ROW_MULTIPLE = 256
"""Packed rows are a multiple of so many tokens long."""
PASS_TOKENS = 2048
"""Tokens of one forward pass, unless one row is longer."""
LOGITS = 128
"""Positions whose logits, of all tokens, are in memory at a time."""


def token_changes(combined: Model, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], mesh: Mesh) -> TokenChanges:
    """What the base alone would have chosen at every token of the replies, given all that comes before it.

    Args:
        combined: a base with something added to its logits (``evaluation.combine``).
        prompts: token ids of each question.
        replies: token ids of each reply, as the combined model wrote it; NO_TOKEN and what follows is no part of it.
        mesh: what the model is on; all processes of a run call this together.

    Returns:
        How many tokens the replies have, the fraction of them that the base would have chosen otherwise, and the fraction at which a gate
        left the choice to the base.
    """
    config = combined.config
    assert isinstance(config, CombinedConfig)
    written = [tuple(int(token) for token in reply if token != NO_TOKEN) for reply in replies]
    read = [
        EncodedDemonstration(str(number), tuple(prompt), reply)
        for number, (prompt, reply) in enumerate(zip(prompts, written, strict=True))
        if reply
    ]
    if not read:
        return TokenChanges(0, 0.0, 0.0)
    parallel = config.partition(mesh.shape[sharding.MODEL])
    params = sharding.shard_params(combined.params, mesh, parallel.dims(config) if parallel else None)
    data = _passes(read)
    changed, gated = ChunkProgram(_compare(config, parallel), params, None, mesh, 1)(Candidate.base(1), data)
    asked = data["weights"] > 0
    return TokenChanges(int(asked.sum()), float(changed[0][asked].mean()), float(gated[0][asked].mean()))


def _passes(read: Sequence[EncodedDemonstration]) -> dict[str, np.ndarray]:
    """Packed rows, as many of them in a pass as ``PASS_TOKENS`` hold: the arrays of ``Rows`` with leading (passes, rows).

    The last pass is filled with copies of the last row, which count for nothing.
    """
    longest = max(len(each.prompt) + len(each.response) - 1 for each in read)
    rows = pack_rows(read, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)
    width = max(1, min(len(rows), PASS_TOKENS // rows.arrays["tokens"].shape[1]))
    passes = -(-len(rows) // width)
    numbers = np.arange(passes * width)
    data = rows.batch(np.minimum(numbers, len(rows) - 1))
    data["weights"] = data["weights"] * (numbers < len(rows))[:, None].astype(np.float32)
    return {name: array.reshape(passes, width, *array.shape[1:]) for name, array in data.items()}


def _compare(config: CombinedConfig, parallel: Any):
    """The function that ``ChunkProgram`` runs: two bool (passes, rows, Q), at each learned position whether the base's choice is another
    one, and whether the gate is shut."""

    def fn(params: Any, _: Any, data: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        model = config.build(params, parallel)
        base = config.base.build(params[NAMES[config.rule][0]], parallel.parts[0] if parallel else None)

        def at_some(hidden: Any) -> tuple[jax.Array, jax.Array]:
            z_base = base.logits(hidden[0])
            changed = model.vocabulary.argmax(z_base) != model.vocabulary.argmax(model.logits(hidden))
            shut = jnp.zeros_like(changed) if config.gate is None else model.vocabulary.entropy(z_base) <= config.gate
            return changed, shut

        def one_pass(data: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden, _ = model(data["tokens"], data["positions"], segment_mask(data["segments"]))
            shape = data["query"].shape
            some = gcd(shape[0] * shape[1], LOGITS)
            parts = jax.tree.map(lambda h: at_queries(h, data["query"]).reshape(-1, some, h.shape[-1]), hidden)
            changed, shut = jax.lax.map(at_some, parts)
            return changed.reshape(shape), shut.reshape(shape)

        return jax.lax.map(one_pass, data)

    return fn
