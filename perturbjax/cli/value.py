"""What ``evaluate``, ``predict`` and ``export`` do with a run of ``perturbjax ivl``: its value network on one base."""

import contextlib
from typing import TYPE_CHECKING

from perturbjax.errors import InputError
from perturbjax.records import to_json
from perturbjax.runs.config import absolute_if_there
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_json
from perturbjax.runs.rundir import RunDirectory

VALUE_OPTIONS = ("base", "vocabulary", "alpha", "gate")
EVALUATE_OPTIONS = (*VALUE_OPTIONS, "rivals")
"""Options of ``evaluate`` (and but for the last of ``predict``) that only a value network has a use for."""

if TYPE_CHECKING:
    from perturbjax.cli.evaluate import EvaluateConfig
    from perturbjax.cli.export import ExportConfig
    from perturbjax.cli.predict import PredictConfig


def refuse_options(config: "EvaluateConfig | PredictConfig | ExportConfig", names: tuple[str, ...], chapter: str) -> None:
    """Raise ``InputError`` if one of these options was given, which a run of ``chapter`` has no use for."""
    defaults = type(config).__dataclass_fields__
    for name in names:
        if getattr(config, name) != defaults[name].default:
            raise InputError(f"`{name}` {getattr(config, name)}: {config.run} is a run of {chapter}, which does not take it; leave it out")


def check_strength(alpha: float, gate: float | None) -> None:
    """Raise ``InputError`` unless the weight of a value network and its gate are usable."""
    if not -100 <= alpha <= 100:
        raise InputError(f"`alpha` {alpha}: a number from -100 to 100 is required")
    if gate is not None and not 0 <= gate < float("inf"):
        raise InputError(f"`gate` {gate}: an entropy in nats, 0 or above, is required")


def evaluate_value(config: "EvaluateConfig", console: Console) -> None:
    """Measure a base with and without the value network; write RUN/evaluation-NAME.json, and the report anew."""
    from perturbjax.inference.fingerprint import task_fingerprint
    from perturbjax.ivl.config import check_rivals
    from perturbjax.ivl.evaluation import measure_base
    from perturbjax.ivl.reopen import reopen
    from perturbjax.ivl.report import write_report
    from perturbjax.ivl.results import VERSION, Evaluation
    from perturbjax.ivl.results_table import base_lines, rival_lines
    from perturbjax.ivl.rivals import Rivals
    from perturbjax.report import Source
    from perturbjax.runs.machine import make_mesh
    from perturbjax.tasks import load_task
    from perturbjax.train.demonstrations import load_demonstrations, without_asked
    from perturbjax.tree import fingerprint

    check_strength(config.alpha, config.gate)
    check_rivals(config.rivals, own_base=config.base is None)
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
    on = value.on(config.base, config.vocabulary, config.alpha, config.gate)
    check_rivals(config.rivals, own_base=fingerprint(on.base.params) == value.record.base_fingerprint)
    console.note(f"base {on.base.name}: {on.base.source}")
    mesh, seed = make_mesh(value.config.machine), value.config.value.seed
    rivals = Rivals(config.run, value.config, value.trained, value.train, value.validation, mesh, console)
    beside = rivals.beside(on.base, config.rivals, one_vocabulary=on.vocabulary is None)
    with RunDirectory(config.run).locked() if beside else contextlib.nullcontext():  # trainings have a state in the run
        entries = measure_base(on.base, on.combined, value.trained.tokenizer, task, template, questions, mesh, seed, console, beside)
    kind = on.vocabulary.kind if on.vocabulary is not None else None
    source = Source(task.name, task.source)
    evaluation = Evaluation(VERSION, source, template.name, config.alpha, config.gate, kind, entries)
    path = RunDirectory(config.run).evaluation(config.name or f"{on.base.name}-{task.name}")
    write_json(path, to_json(evaluation))
    console.line(
        f"{len(questions)} questions of {task.name} ({task_fingerprint(task, questions)[:19]}), prompt {template.name}, {on.base.name}"
    )
    for line in (*base_lines(entries), *rival_lines(entries)):
        console.line(line)
    console.line(f"written to {path}")
    console.line(f"report     {write_report(config.run)}")


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
    engine = Engine(on.combined, value.task, Noise(), make_mesh(value.config.machine), chunk=1)
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
