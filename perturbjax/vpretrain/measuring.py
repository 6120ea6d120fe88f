"""What is measured of an arm, step 0 included: losses on the test rows and on text of another domain, and answers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from perturbjax.runs.console import Progress
from perturbjax.train.placement import put_params
from perturbjax.train.problem import Look
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.asking import LOOKS, TEST, accuracies, make_askers
from perturbjax.vpretrain.corpus import encode_corpus
from perturbjax.vpretrain.evaluation import row_losses
from perturbjax.vpretrain.experiment import model_dims, whole_params
from perturbjax.vpretrain.results import START, VERSION, Measured
from perturbjax.vpretrain.setup import Parts


class Measuring:
    """The programs that all arms share.

    Args:
        parts, experiment: of the run.
        mesh: (data, model).
        progress: told how far it is.

    Raises:
        InputError: a prompt is longer than the model's context.
    """

    def __init__(self, parts: Parts, experiment: Experiment, mesh: Mesh, progress: Progress):
        self._parts, self._experiment, self._mesh, self._progress = parts, experiment, mesh, progress
        self._whole = whole_params(parts, mesh)
        # Of a run of before the setting, arms that are done were not asked.
        data = parts.config.data if "accuracy_questions" in parts.identity else replace(parts.config.data, accuracy_questions=0)
        self._askers = make_askers(parts.model, parts.feedback, data, mesh)

    @property
    def accuracy(self) -> Callable[[Any], dict[str, float]] | None:
        """What a training trains, on the mesh -> accuracy on the questions of looks; None where there are none."""
        if not any(LOOKS in asker for asker in self._askers.values()):
            return None
        return lambda trained: accuracies(self._askers, self._whole(trained, self._experiment.frozen))

    def arm(self, mode: str, params: Any) -> Measured:
        """One model on the test rows, with the look before any step for that of step 0; all processes of a run call it together."""
        parts, learner = self._parts, self._experiment.task.learner.merged
        placed = put_params(params, self._mesh, model_dims(parts, self._mesh))
        stages = 1 + len(parts.feedback)
        tokens, tokenizer = parts.config.training.row_tokens, parts.model.tokenizer

        def losses(texts: Any) -> tuple[float, ...]:
            encoded = encode_corpus(texts, tokenizer, tokens)
            fitting = [each for each in encoded if len(each.prompt) + len(each.response) - 1 <= tokens]
            return row_losses(learner, placed, fitting, tokens, self._mesh)

        found: dict[str, Any] = {}
        what = "step 0" if mode == START else f"{mode}, test"
        with self._progress.bar(what, stages) as bar:
            for number, (name, each) in enumerate(parts.feedback.items(), start=1):
                asker = self._askers.get(name)
                found[name] = losses(each.test), asker.ask(placed, TEST) if asker is not None else None
                bar.update(number)
            general = float(np.mean(losses(parts.general))) if parts.general else None
            looks = self._first_look(losses, general, placed) if mode == START else ()
            bar.update(stages)
        answered = {name: replies for name, (_, replies) in found.items() if replies is not None}
        return Measured(
            VERSION,
            mode,
            {name: each for name, (each, _) in found.items()},
            {name: each.scores for name, each in answered.items()},
            {name: each.lenient for name, each in answered.items()},
            {name: each.tokens for name, each in answered.items()},
            general,
            looks,
        )

    def _first_look(self, losses: Callable[[Any], tuple[float, ...]], general: float | None, placed: Any) -> tuple[Look, ...]:
        """What the looks of a training measure, before any."""
        validation = {name: float(np.mean(losses(each.validation))) for name, each in self._parts.feedback.items()}
        validation |= {"general": general} if general is not None else {}
        return (Look(0, {}, 0.0, 0.0, validation, 0, 0.0, None, accuracy=accuracies(self._askers, placed)),)
