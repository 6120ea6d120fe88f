"""What ``evaluate``, ``predict`` and ``export`` do with a run of ``perturbjax vpretrain``: its model."""

from typing import TYPE_CHECKING

from perturbjax.cli.value import EVALUATE_OPTIONS, VALUE_OPTIONS, refuse_options
from perturbjax.errors import InputError
from perturbjax.records import to_json
from perturbjax.report import Comparison, Entry
from perturbjax.report.words import percent, percent_range, points, points_range
from perturbjax.runs.config import Machine
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_json
from perturbjax.runs.rundir import RunDirectory

if TYPE_CHECKING:
    from perturbjax.cli.evaluate import EvaluateConfig
    from perturbjax.cli.export import ExportConfig
    from perturbjax.cli.predict import PredictConfig


def evaluate_pretrained(config: "EvaluateConfig", console: Console) -> None:
    """Measure the model and the one it began as on questions; write RUN/evaluation-NAME.json."""
    import numpy as np

    from perturbjax.inference.fingerprint import task_fingerprint
    from perturbjax.report import compared_entry, entry
    from perturbjax.runs.machine import make_mesh
    from perturbjax.tree import derived_seed
    from perturbjax.vpretrain.asking import Asker
    from perturbjax.vpretrain.reopen import reopen

    refuse_options(config, EVALUATE_OPTIONS, "vpretrain")
    run = reopen(config.run, console.note, (*config.trust, config.task or ""))
    task, template, questions, dropped = run.questions(config.task)
    if dropped:
        console.note(f"perturbjax: warning: {dropped} questions of {task.name} are in the corpus or steered the run, and are left out")
    if config.examples is not None and config.examples > len(questions):
        raise InputError(f"`examples` {config.examples}: {len(questions)} questions are there; ask for fewer")
    questions = questions[: config.examples]
    if not questions:
        raise InputError(f"`task` {task.name}: no question that the run has not seen; give a task with others")
    asker = Asker(run.model, task, template, make_mesh(Machine(mesh=config.mesh)), {"asked": questions})
    before, after = (asker.ask(model.params, "asked") for model in (run.start(), run.model))
    scores = [np.asarray(each.scores) for each in (before, after)]
    plain, own = (entry(s, np.asarray(each.lenient), each.tokens) for s, each in zip(scores, (before, after), strict=True))
    compared = compared_entry(own, scores[1], scores[0], derived_seed(run.config.steer.seed, "bootstrap"))
    path = RunDirectory(config.run).evaluation(config.name or task.name)
    record = {
        "task": {"name": task.name, "source": task.source, "fingerprint": task_fingerprint(task, questions)},
        "template": template.name,
        "start": to_json(plain),
        "trained": to_json(compared),
    }
    write_json(path, record)
    console.line(f"{len(questions)} questions of {task.name}, prompt {template.name}")
    console.line(_line("step 0", plain))
    console.line(_line("after training", compared))
    console.line(f"written to {path}")


def predict_pretrained(config: "PredictConfig", console: Console) -> None:
    """Answer questions with the model."""
    from perturbjax.cli.predict import read_questions, to_examples, write_lines
    from perturbjax.inference import Engine
    from perturbjax.noise import Noise
    from perturbjax.runs.machine import make_mesh
    from perturbjax.vpretrain.reopen import reopen

    refuse_options(config, VALUE_OPTIONS, "vpretrain")
    rows = read_questions(config.questions)
    run = reopen(config.run, console.note, (*config.trust, config.task or ""))
    task, template, questions = run.asking(config.task)
    examples = to_examples(task, template, questions, rows)
    engine = Engine(run.model, task, Noise(), make_mesh(Machine(mesh=config.mesh)), chunk=1)
    found = engine.run_plain(engine.prepare(examples, template)).answers[0]
    write_lines(config.out, ({"question": e.question, "answer": answer} for e, answer in zip(examples, found, strict=True)))
    console.line(f"{len(examples)} answers by {run.model.name} written to {config.out}")


def export_pretrained(config: "ExportConfig", console: Console) -> None:
    """Write the model, or with ``base`` the one it began as, as a Hugging Face directory."""
    from perturbjax.pretrained.export import export_safetensors
    from perturbjax.vpretrain.reopen import reopen

    refuse_options(config, ("rank", "merge", "beside", "vocabulary"), "vpretrain")
    run = reopen(config.run, console.note, config.trust)
    model = run.start() if config.base else run.model
    export_safetensors(model, model.params, config.out)
    console.line(f"wrote {model.name} to {config.out}")


def _line(label: str, entry: Entry) -> str:
    text = f"{label:<14} {percent(entry.accuracy):>7} right  [{percent_range(entry.interval)[:-2]}]"
    if isinstance(entry, Comparison):
        text += f"  {points(entry.difference)} points to step 0  [{points_range(entry.difference_interval)}]"
    return text
