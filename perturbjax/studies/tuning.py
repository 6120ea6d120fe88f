"""Supervised fine-tuning of all parameters on a few questions, step by step, in memory: a reference for searchers.

A chapter's training is ``train.loop.fit``, which commits and resumes; here a step is the same program, of ``train.step``, without a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.models.config import DecoderConfig
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import leaf_paths

if TYPE_CHECKING:
    from perturbjax.pretrained import Model
    from perturbjax.train.rows import Rows

ROW_TOKENS = 512


def demonstration_rows(model: Model, task: Task, template: Template, examples: Sequence[Example]) -> Rows:
    """The questions packed into rows, the right answers as responses; each question weighs the same."""
    from perturbjax.train.demonstrations import encode_demonstrations, task_demonstrations
    from perturbjax.train.rows import pack_rows

    encoded = encode_demonstrations(task_demonstrations(task, template.name, examples), model.tokenizer)
    longest = max(len(each.prompt) + len(each.response) for each in encoded)
    return pack_rows(encoded, max(ROW_TOKENS, -(-longest // 64) * 64), per_demonstration=True)


class Tuner:
    """Trains a copy of the base in float32 with AdamW at a constant rate; every step takes all questions.

    Args:
        model: the base, never written.
        rows: of ``demonstration_rows``.
        learning_rate: of AdamW.

    Attributes:
        params: as trained so far; only to be read before the next ``advance``.
        step: steps done; ``loss``: of the last, before it.
        tokens: of one step.
    """

    def __init__(self, model: Model, rows: Rows, learning_rate: float):
        from perturbjax.train.config import Training
        from perturbjax.train.language import fine_tuning_loss
        from perturbjax.train.optimizer import make_optimizer
        from perturbjax.train.step import TrainState, make_step

        assert isinstance(model.config, DecoderConfig)
        settings = Training(learning_rate=learning_rate, schedule="constant", warmup=0.0, weight_decay=0.0)
        optimizer = make_optimizer(settings, steps=1)
        dtype = next(leaf.dtype for leaf in leaf_paths(model.params).values() if jnp.issubdtype(leaf.dtype, jnp.floating))
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), model.params)
        self._state = TrainState(params, optimizer.init(params))
        # One row after the other, gradients added up: a row's activations are in memory at a time.
        self._batch = {name: array[:, None] for name, array in rows.arrays.items()}
        self._step: Any = jax.jit(make_step(fine_tuning_loss(model.config, dtype), optimizer), donate_argnums=0)
        self.tokens, self.step, self.loss = rows.tokens, 0, float("nan")

    @property
    def params(self) -> Any:
        return self._state.params

    def advance(self, steps: int) -> None:
        """So many further steps.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        for _ in range(steps):
            self._state, sums = self._step(self._state, None, self._batch)
            self.step += 1
            self.loss = float(sums["loss"]) / float(sums["weight"])
            if not np.isfinite(self.loss):
                raise FloatingPointError(f"the loss of SFT is not finite at step {self.step}; lower the learning rate")
