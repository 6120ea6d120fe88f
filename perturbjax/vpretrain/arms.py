"""The arms of an experiment: what a training of each mode is, from the same learner, rows and steps.

| mode | targets | feedback is used for |
|---|---|---|
| plain | the true tokens | nothing |
| value | a designer's | the designer |
| random | a designer's | nothing: the designer follows a random direction |
| uniform | leaning to all candidates alike | nothing |
| self | leaning to the learner's own distribution | nothing |
| oracle | those of highest value, with no designer between | every target |
| fine_tuning | the feedback's own tokens, in place of the corpus | training the learner |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perturbjax.train.problem import Auxiliary, Problem
from perturbjax.train.rows import Rows, join_rows
from perturbjax.train.step import Loss
from perturbjax.vpretrain.config import Mode
from perturbjax.vpretrain.steering import Steering, designer_auxiliary, feedback_batches, oracle_auxiliary
from perturbjax.vpretrain.text import Designed, Fixed, Oracle, TextTask, designed_loss

STEERED = ("value", "random", "oracle")
"""Modes with something that is updated before some of the steps."""


@dataclass(frozen=True)
class Experiment:
    """What the arms have in common.

    Attributes:
        task: learner, designer, subset, weights of the feedback sets.
        trained: the learner's trained parameters at the start; ``frozen``: those that it reads besides.
        designer: the designer's parameters at the start.
        steering: settings of the updates.
        rows: of the corpus.
        feedback: name -> rows of each set.
        feedback_rows: rows of each set in one update.
        rate: step -> learning rate of the learner.
        measured: name -> rows whose plain loss is measured at each look.
        dims: as of ``Problem``.
        designer_dims: path -> sharded dim of the designer's parameters.
    """

    task: TextTask
    trained: Any
    frozen: Any
    designer: Any
    steering: Steering
    rows: Rows
    feedback: Mapping[str, Rows]
    feedback_rows: int
    rate: Callable[[Any], Any]
    measured: Mapping[str, Rows]
    dims: Mapping[str, Any]
    designer_dims: Mapping[str, Any] = field(default_factory=dict)

    def problem(self, mode: Mode) -> Problem:
        """What ``train.loop.fit`` trains in this mode."""
        task, rows = self.task, self.rows
        auxiliary: Auxiliary | None = None
        if mode in STEERED:
            auxiliary = self._auxiliary(mode)
        if mode == "fine_tuning":
            rows = join_rows(self.feedback, task.weights)
        plain = task.learner.plain_loss()
        losses = [(self._loss(mode), self.frozen)]
        return Problem(
            self.trained, losses, rows, validate=(plain, self.frozen), dims=self.dims, auxiliary=auxiliary, measured=self.measured
        )

    def _loss(self, mode: Mode) -> Loss:
        learner, designer = self.task.learner, self.task.designer
        k, alpha = designer.candidates, designer.alpha_max
        if mode in ("plain", "fine_tuning"):
            return learner.plain_loss()
        if mode in ("uniform", "self"):
            return designed_loss(learner, k, Fixed("uniform" if mode == "uniform" else "self", alpha), steered=False)
        if mode == "oracle":
            return designed_loss(learner, k, Oracle(learner, self.task.subset, k, alpha))
        return designed_loss(learner, k, Designed(designer))

    def _auxiliary(self, mode: Mode) -> Auxiliary:
        batches = feedback_batches(self.feedback, self.feedback_rows, self.steering)
        matched = self.task.by_domain()
        if mode == "oracle":
            return oracle_auxiliary(self.task, self.steering, self.trained, batches, matched, self.dims)
        steering = replace(self.steering, random=mode == "random")
        return designer_auxiliary(self.task, steering, self.designer, batches, self.rate, matched, self.designer_dims)
