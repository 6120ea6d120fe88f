"""What ``evaluate``, ``predict`` and ``export`` do with a run of ``perturbjax ivl``: its value network on one base."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perturbjax.errors import InputError
from perturbjax.records import to_json
from perturbjax.runs.config import Machine, absolute_if_there, check_once
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_json
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example, Task, Template

VALUE_OPTIONS = ("base", "vocabulary", "alpha", "gate")
EVALUATE_OPTIONS = (*VALUE_OPTIONS, "rivals")
"""Options of ``evaluate`` (and but for the last of ``predict``) that only a value network has a use for."""

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from perturbjax.cli.evaluate import EvaluateConfig
    from perturbjax.cli.export import ExportConfig
    from perturbjax.cli.predict import PredictConfig
    from perturbjax.ivl.reopen import OnBase, ValueRun


def refuse_options(config: "EvaluateConfig | PredictConfig | ExportConfig", names: tuple[str, ...], chapter: str) -> None:
    """Raise ``InputError`` if one of these options was given, which a run of ``chapter`` has no use for."""
    defaults = type(config).__dataclass_fields__
    for name in names:
        if getattr(config, name) != defaults[name].default:
            shown = ",".join(given) if isinstance(given := getattr(config, name), tuple) else given
            raise InputError(f"`{name}` {shown}: {config.run} is a run of {chapter}, which does not take it; leave it out")


def check_strength(alpha: float, gate: float | None) -> None:
    """Raise ``InputError`` unless the weight of a value network and its gate are usable."""
    if not -100 <= alpha <= 100:
        raise InputError(f"`alpha` {alpha}: a number from -100 to 100 is required")
    if gate is not None and not 0 <= gate < float("inf"):
        raise InputError(f"`gate` {gate}: an entropy in nats, 0 or above, is required")


def evaluate_value(config: "EvaluateConfig", console: Console) -> None:
    """Measure bases with and without the value network; write RUN/evaluation-NAME.json of each, and the report anew."""
    from perturbjax.ivl.config import check_rivals
    from perturbjax.ivl.reopen import reopen
    from perturbjax.runs.machine import make_mesh
    from perturbjax.tasks import load_task
    from perturbjax.train.demonstrations import load_demonstrations, without_asked

    check_strength(config.alpha, config.gate)
    check_rivals(config.rivals, own_base=not config.base)
    value = reopen(config.run, console.note, (*config.trust, config.task or ""))
    RunDirectory(config.run).check_finished()
    data = value.config.data
    own = config.task is None or absolute_if_there(config.task) == (data.task or data.demonstrations)
    task = value.task if config.task is None or own else load_task(config.task)
    questions = value.test
    if not own:
        shown = load_demonstrations(data.demonstrations)
        questions = without_asked(task.examples(), shown)
        if dropped := len(task.examples()) - len(questions):
            console.note(f"perturbjax: warning: {dropped} questions of {task.name} are asked by demonstrations and left out")
    if config.examples is not None and config.examples > len(questions):
        raise InputError(f"`examples` {config.examples}: {len(questions)} questions are there; ask for fewer")
    questions = questions[: config.examples]
    if not questions:
        raise InputError(f"`task` {task.name}: no question that no demonstration asks; give a task with others")
    template = value.template if own else task.templates[0]
    mesh = make_mesh(Machine(mesh=config.mesh))
    asked = _Asked(value, task, template, questions, mesh)
    if len(config.base) > 1:  # what is wrong with the last is said before the first is measured
        _check_bases(config, asked, console)
    for name in config.base or (None,):
        _evaluate_on(config, asked, name, console)


@dataclass(frozen=True)
class _Asked:
    """What is measured with, and on what."""

    value: "ValueRun"
    task: Task
    template: Template
    questions: Sequence[Example]
    mesh: "Mesh"

    def on(self, config: "EvaluateConfig", base: str | None, console: Console, stored: bool = False) -> tuple["OnBase", dict[str, Any]]:
        """The value network on a base, and its rivals there."""
        from perturbjax.ivl.config import check_rivals
        from perturbjax.ivl.rivals import Rivals
        from perturbjax.tree import fingerprint

        value = self.value
        on = value.on(base, config.vocabulary, config.alpha, config.gate, stored)
        if config.rivals:
            check_rivals(config.rivals, own_base=fingerprint(on.base.params) == value.record.base_fingerprint)
        rivals = Rivals(config.run, value.config, value.trained, value.train, value.validation, self.mesh, console)
        return on, rivals.beside(on.base, config.rivals, one_vocabulary=on.vocabulary is None)


def _check_bases(config: "EvaluateConfig", asked: _Asked, console: Console) -> None:
    """Raise ``InputError`` unless each of several bases can be measured, and has a file of its own."""
    if config.name is not None:
        raise InputError(f"`name` {config.name}: names one evaluation; with several bases leave it out")
    check_once("base", config.base)
    check_once("base", [asked.on(config, base, console, stored=True)[0].base.name for base in config.base])


def _evaluate_on(config: "EvaluateConfig", asked: _Asked, name: str | None, console: Console) -> None:
    from perturbjax.inference.fingerprint import task_fingerprint
    from perturbjax.ivl.evaluation import measure_base
    from perturbjax.ivl.report import write_report
    from perturbjax.ivl.results import VERSION, Evaluation
    from perturbjax.ivl.results_table import about_lines, base_lines, rival_lines
    from perturbjax.report import Source

    value, task, template, questions = asked.value, asked.task, asked.template, asked.questions
    on, beside = asked.on(config, name, console)
    if on.base is not value.trained:
        console.note(f"base {on.base.name}: {on.base.source}")
    seed = value.config.value.seed
    with RunDirectory(config.run).locked() if beside else contextlib.nullcontext():  # trainings have a state in the run
        entries = measure_base(on.base, on.combined, value.trained.tokenizer, task, template, questions, asked.mesh, seed, console, beside)
    kind = on.vocabulary.kind if on.vocabulary is not None else None
    source = Source(task.name, task.source)
    evaluation = Evaluation(VERSION, source, template.name, config.alpha, config.gate, kind, entries)
    path = RunDirectory(config.run).evaluation(config.name or _name(config, on.base.name, task.name))
    write_json(path, to_json(evaluation))
    console.line(
        f"{len(questions)} questions of {task.name} ({task_fingerprint(task, questions)[:19]}), prompt {template.name}, {on.base.name}"
    )
    for line in (*base_lines(entries), *about_lines(entries), *rival_lines(entries)):
        console.line(line)
    console.line(f"written to {path}")
    console.line(f"report     {write_report(config.run)}")


def _name(config: "EvaluateConfig", base: str, task: str) -> str:
    """NAME of the file of an evaluation: other settings are another evaluation, and do not replace it."""
    settings = (
        config.vocabulary if config.vocabulary == "dtw" else None,
        f"alpha{config.alpha:g}" if config.alpha != 1 else None,
        f"gate{config.gate:g}" if config.gate is not None else None,
    )
    return "-".join((base, task, *(part for part in settings if part)))


def predict_value(config: "PredictConfig", console: Console) -> None:
    """Answer questions with a base and the value network beside it."""
    from perturbjax.cli.predict import read_questions, to_examples, write_lines
    from perturbjax.inference import Engine
    from perturbjax.ivl.reopen import reopen
    from perturbjax.noise import Noise
    from perturbjax.runs.machine import make_mesh

    check_strength(config.alpha, config.gate)
    rows = read_questions(config.questions)
    value = reopen(config.run, console.note, config.trust)
    examples = to_examples(value.task, value.template, value.test, rows)
    on = value.on(config.base, config.vocabulary, config.alpha, config.gate)
    engine = Engine(on.combined, value.task, Noise(), make_mesh(Machine(mesh=config.mesh)), chunk=1)
    answers = engine.run_plain(engine.prepare(examples, value.template)).answers[0]
    write_lines(config.out, ({"question": e.question, "answer": answer} for e, answer in zip(examples, answers, strict=True)))
    console.line(f"{len(examples)} answers by {on.combined.name} written to {config.out}")


def export_value(config: "ExportConfig", console: Console) -> None:
    """Write the value network as a Hugging Face directory, with how to add its logits, and a map to a base's vocabulary beside it."""
    from perturbjax.ivl.export import export_network
    from perturbjax.ivl.reopen import reopen

    value = reopen(config.run, console.note, config.trust)
    export_network(value, config.beside, config.vocabulary, config.out)
    console.line(f"wrote the value network to {config.out}")
