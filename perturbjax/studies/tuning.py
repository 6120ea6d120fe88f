"""Training of all parameters on a few questions, step by step, in memory, by demonstrations or by reward: references for searchers.

A chapter's training is ``train.loop.fit``, which commits and resumes; here a step is the same program, of ``train.step``, without a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.inference.log_odds import policy_gradient
from perturbjax.models.config import DecoderConfig
from perturbjax.randopt.flow import run_base
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import leaf_paths

if TYPE_CHECKING:
    from perturbjax.inference.engine import Engine
    from perturbjax.inference.outputs import EncodedBatch
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
    """Supervised fine-tuning of a copy of the base in float32, with AdamW at a constant rate; every step takes all questions.

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
        from perturbjax.train.language import fine_tuning_loss
        from perturbjax.train.step import make_step

        assert isinstance(model.config, DecoderConfig)
        optimizer, self._state, dtype = _begin(model, learning_rate)
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


class PolicyTuner:
    """GRPO (arXiv 2402.03300) of a copy of the base on questions of given answers: the policy is the softmax over a question's choices.

    A step draws ``group`` answers to every question, rewards the right ones with 1, standardizes rewards within a question's group, and
    takes one step of AdamW along the policy gradient. Drawn answers are used once, so that there is no ratio to clip; without KL term.
    Questions whose group agrees move nothing.

    Args:
        engine: answers the questions; its base is the trained model afterwards.
        model: the base, never written.
        answered, differentiated: the same questions, prepared for the engine and for a gradient (``GRADIENT_TOKENS``).
        right: (E,) right choices.
        group: draws of a question.
        learning_rate: of AdamW.
        seed: of the draws.

    Attributes:
        params, step: as in ``Tuner``.
        reward: mean of the last step's draws.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        answered: EncodedBatch,
        differentiated: EncodedBatch,
        right: np.ndarray,
        group: int,
        learning_rate: float,
        seed: int,
    ):
        self._engine, self._config, self._answered, self._differentiated = engine, model.config, answered, differentiated
        self._right, self._group, self._rng = right, group, np.random.default_rng(seed)
        optimizer, self._state, _ = _begin(model, learning_rate)
        self._update: Any = jax.jit(lambda state, gradient: _descend(optimizer, state, gradient), donate_argnums=0)
        self.step, self.reward = 0, float("nan")

    @property
    def params(self) -> Any:
        return self._state.params

    def advance(self, steps: int) -> None:
        """So many further steps."""
        for _ in range(steps):
            self._engine.rebase(self.params)
            logs = run_base(self._engine, self._answered).log_probs
            assert logs is not None, "a multiple-choice task has them"
            advantages, self.reward = group_advantages(logs[0], self._right, self._group, self._rng)
            gradient = policy_gradient(self.params, self._config, self._differentiated, advantages)
            self._state = self._update(self._state, gradient)
            self.step += 1


def group_advantages(log_probs: np.ndarray, right: np.ndarray, group: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draws ``group`` choices of each question from the softmax of (E, C) log-probabilities (-inf where there is no choice).

    Returns:
        (E, C) float32: the standardized rewards of a choice's draws, added up over them and divided by ``group``; 0 where all draws of a
        question earn the same. And the mean reward.
    """
    gumbel = rng.gumbel(size=(group, *log_probs.shape))
    drawn = (log_probs.astype(np.float64)[None] + gumbel).argmax(axis=2)
    rewards = (drawn == right[None]).astype(np.float64)
    spread = rewards.std(axis=0)
    standard = np.where(spread > 0, (rewards - rewards.mean(axis=0)) / np.where(spread > 0, spread, 1), 0)
    advantages = np.zeros(log_probs.shape, np.float32)
    np.add.at(advantages, (np.arange(len(right))[None].repeat(group, axis=0), drawn), standard / group)
    return advantages, float(rewards.mean())


def _begin(model: Model, learning_rate: float) -> tuple[Any, Any, Any]:
    """AdamW at a constant rate, the state of a float32 copy of the base, and the type that the base is held in."""
    from perturbjax.train.config import Training
    from perturbjax.train.optimizer import make_optimizer
    from perturbjax.train.step import TrainState

    settings = Training(learning_rate=learning_rate, schedule="constant", warmup=0.0, weight_decay=0.0)
    optimizer = make_optimizer(settings, steps=1)
    dtype = next(leaf.dtype for leaf in leaf_paths(model.params).values() if jnp.issubdtype(leaf.dtype, jnp.floating))
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), model.params)
    return optimizer, TrainState(params, optimizer.init(params)), dtype


def _descend(optimizer: Any, state: Any, gradient: Any) -> Any:
    """The state after a step up the gradient: what is given is of a value to raise."""
    updates, moments = optimizer.update(jax.tree.map(jnp.negative, gradient), state.optimizer, state.params)
    return type(state)(jax.tree.map(jnp.add, state.params, updates), moments)
