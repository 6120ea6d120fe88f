"""A finished steered pretraining, opened again: its model beside the one it began as, for evaluation, answers and export."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.pretrained import Model, load_model
from perturbjax.records import from_json
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import fingerprint
from perturbjax.vpretrain.config import Config
from perturbjax.vpretrain.corpus import load_corpus
from perturbjax.vpretrain.feedback import FeedbackSet, load_feedback
from perturbjax.vpretrain.overlap import normalized, question


@dataclass(frozen=True)
class PretrainedRun:
    """The trained model, and what it was trained with.

    Attributes:
        config: of the run.
        model: after training.
        feedback: its sets, divided as in the run.
    """

    config: Config
    model: Model
    feedback: tuple[FeedbackSet, ...]
    fingerprint: str
    clock: str | None

    @property
    def asked(self) -> FeedbackSet:
        """The first feedback set that is a task.

        Raises:
            InputError: none is.
        """
        for each in self.feedback:
            if each.task is not None:
                return each
        raise InputError("`task`: no feedback of the run is a task; name one whose questions are to be asked")

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

    def questions(self, spec: str | None) -> tuple[Task, Template, tuple[Example, ...], int]:
        """Task, template and questions to measure on: the run's own test questions, or those of another task that neither corpus nor
        feedback shows; and how many of these were left out."""
        own = self.asked if spec is None else next((each for each in self.feedback if each.name == spec and each.task is not None), None)
        if own is not None and own.task is not None and own.template is not None:
            return own.task, own.template, own.questions, 0
        assert spec is not None
        task = load_task(spec)
        shown = [*load_corpus(self.config.data.corpus), *(row for each in self.feedback for row in each.steer)]
        seen = {normalized(question(row)) for row in shown}
        kept = tuple(example for example in task.examples() if normalized(example.question) not in seen)
        return task, task.templates[0], kept, len(task.examples()) - len(kept)


def reopen(run: Path, note: Callable[[str], None], trusted: Collection[str] = ()) -> PretrainedRun:
    """The model of a run.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, or its training has not finished.
    """
    directory = RunDirectory(run)
    content = directory.read_config()
    config = directory.read_settings(Config, trusted)
    if not directory.results.exists():
        raise InputError(f"{run}: the training has not finished; continue it with `resume`")
    name = from_json(dict[str, str], content.get("model"), f"{directory.config}: model").get("name", "the model")
    model = replace(load_model(str(run / "model"), config.base.dtype), name=f"{name} after {config.steer.mode}")
    note(f"model {model.name}: {run / 'model'}")
    model.tokenizer.clock = content["prompt_clock"]
    data, seed = config.data, config.steer.seed
    sizes = data.feedback_examples, data.validation_examples, data.test_examples
    sets = tuple(load_feedback(name, *sizes, seed) for name in data.feedback)
    return PretrainedRun(config, model, sets, str(content["identity"].get("model_fingerprint")), content["prompt_clock"])
