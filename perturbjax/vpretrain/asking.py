"""A task's questions, put to models that come and go while one engine stays compiled: at every look of every arm, and at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from perturbjax.inference import Engine
from perturbjax.inference.outputs import Graded
from perturbjax.noise import Noise
from perturbjax.pretrained import Model
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.vpretrain.config import Data
from perturbjax.vpretrain.feedback import FeedbackSet

TEST, LOOKS = "test", "looks"
"""Names of the questions of a run: asked once, at the end of each arm; asked at every look."""


class Asker:
    """Questions of one task for models of one shape. Between two calls it holds no parameters.

    Args:
        model: its shapes, types and tokenizer count; its parameters are not read.
        task, template: how questions are put and answers read.
        mesh: (data, model).
        questions: name -> questions that are asked together; none of a name are never asked.

    Raises:
        InputError: a prompt is longer than the model's context.
    """

    def __init__(self, model: Model, task: Task, template: Template, mesh: Mesh, questions: Mapping[str, Sequence[Example]]):
        self._shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), model.params)
        self._engine = Engine(replace(model, params=self._shapes), task, Noise(), mesh, chunk=1)
        self._batches = {name: self._engine.prepare(some, template) for name, some in questions.items() if some}

    def __contains__(self, name: str) -> bool:
        """Whether there are questions of that name."""
        return name in self._batches

    @property
    def traces(self) -> int:
        """How often a program was traced so far."""
        return self._engine.traces

    def ask(self, params: Any, name: str) -> Graded:
        """What a model with these parameters answers: whole arrays, or arrays on the mesh. All processes of a run call it together."""
        self._engine.rebase(params)
        found = self._engine.run_plain(self._batches[name])
        self._engine.rebase(self._shapes)
        return Graded.of(found)


def make_askers(model: Model, sets: Mapping[str, FeedbackSet], data: Data, mesh: Mesh) -> dict[str, Asker]:
    """One for each feedback set that is a task, with its test questions and those that are asked at looks.

    Raises:
        InputError: a prompt is longer than the model's context.
    """
    askers = {}
    for name, each in sets.items():
        if each.task is not None and each.template is not None:
            at_looks = each.validation_questions[: data.asked_at_looks(each.task.kind)]
            askers[name] = Asker(model, each.task, each.template, mesh, {TEST: each.questions, LOOKS: at_looks})
    return askers


def accuracies(askers: Mapping[str, Asker], params: Any) -> dict[str, float]:
    """Set -> accuracy on the questions that are asked at looks, of those that have some."""
    return {name: asker.ask(params, LOOKS).accuracy for name, asker in askers.items() if LOOKS in asker}
