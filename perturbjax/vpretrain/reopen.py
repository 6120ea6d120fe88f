"""A finished steered pretraining, opened again: its model beside the one it began as, for evaluation, answers and export."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.pretrained import Model, load_model
from perturbjax.records import from_json
from perturbjax.runs.config import absolute_if_there
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import fingerprint
from perturbjax.vpretrain.config import Config
from perturbjax.vpretrain.corpus import load_corpus
from perturbjax.vpretrain.feedback import FeedbackSet, feedback_digest, load_feedback
from perturbjax.vpretrain.overlap import normalized, occurrence
from perturbjax.vpretrain.results import read_results


@dataclass(frozen=True)
class PretrainedRun:
    """The trained model, and what it was trained with.

    Attributes:
        config: of the run.
        model: after training.
        fingerprint: of the model that it began as; ``clock``: the date that prompts show.
        rows: digest of the feedback's rows; None in runs of before it was written.
    """

    config: Config
    model: Model
    fingerprint: str
    clock: str | None
    rows: str | None

    @cached_property
    def feedback(self) -> tuple[FeedbackSet, ...]:
        """Its sets, divided as in the run. Read when they are asked for: a model is exported and served without them.

        Raises:
            InputError: one cannot be read, or its rows are others than the run had: those that steered it might be in the test now.
        """
        data = self.config.data
        sizes = data.feedback_examples, data.validation_examples, data.test_examples
        found = tuple(load_feedback(name, *sizes, self.config.steer.seed) for name in data.feedback)
        if self.rows is not None and feedback_digest(found) != self.rows:
            raise InputError(f"`feedback` {','.join(data.feedback)}: not the rows that the run was made with; restore them")
        return found

    @property
    def asked(self) -> FeedbackSet:
        """The first feedback set that is a task.

        Raises:
            InputError: none is.
        """
        for each in self.feedback:
            if each.task is not None:
                return each
        raise InputError("`task`: no feedback of the run is a task, which would say how questions are put and answers read; name one")

    def start(self) -> Model:
        """The model at step 0.

        Raises:
            InputError: it is not the one that the run began with.
        """
        model = load_model(self.config.base.model, self.config.base.dtype)
        if fingerprint(model.params) != self.fingerprint:
            raise InputError(f"`model` {model.name}: not the one that the run began with; restore it")
        model.tokenizer.clock = self.clock
        return model

    def asking(self, spec: str | None) -> tuple[Task, Template, tuple[Example, ...]]:
        """A task, or the run's own, its template and examples: how questions are put and answers read."""
        if spec is None:
            own = self.asked
            assert own.task is not None and own.template is not None
            return own.task, own.template, own.questions
        task = load_task(spec)
        return task, task.templates[0], tuple(task.examples())

    def questions(self, spec: str | None) -> tuple[Task, Template, tuple[Example, ...], int]:
        """Task, template and questions to measure on: the run's own test questions, or those of another task that neither corpus nor
        feedback shows; and how many of these were left out."""
        named = spec and absolute_if_there(spec)
        own = self.asked if spec is None else next((each for each in self.feedback if each.name == named and each.task is not None), None)
        if own is not None and own.task is not None and own.template is not None:
            return own.task, own.template, own.questions, 0
        assert spec is not None
        task = load_task(spec)
        shown = [*load_corpus(self.config.data.corpus), *(row for each in self.feedback for row in each.steer)]
        occurs = occurrence(shown, normalized)
        kept = tuple(example for example in task.examples() if not occurs(example.question))
        return task, task.templates[0], kept, len(task.examples()) - len(kept)


def reopen(run: Path, note: Callable[[str], None], trusted: Collection[str] = ()) -> PretrainedRun:
    """The model of a run.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, or its training has not finished.
    """
    directory = RunDirectory(run)
    content = directory.read_config()
    config = directory.read_settings(Config, trusted)
    directory.check_finished()
    results = read_results(directory.results)
    name = from_json(dict[str, str], content.get("model"), f"{directory.config}: model").get("name", "the model")
    model = replace(load_model(str(run / "model"), config.base.dtype), name=f"{name} after {config.steer.mode}")
    if results.fingerprint not in (None, fingerprint(model.params)):
        raise InputError(f"{run / 'model'}: not the model that the run made; restore it")
    note(f"model {model.name}: {run / 'model'}")
    model.tokenizer.clock = content["prompt_clock"]
    started = str(content["identity"].get("model_fingerprint"))
    return PretrainedRun(config, model, started, content["prompt_clock"], content.get("feedback_digest"))
