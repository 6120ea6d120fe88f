"""``perturbjax evaluate``: a saved ensemble and its base on questions that the run has not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from perturbjax.cli.consolidate import refuse_consolidated
from perturbjax.cli.outputs import check_file_name
from perturbjax.cli.pretrained import evaluate_pretrained
from perturbjax.cli.value import EVALUATE_OPTIONS, evaluate_value, refuse_options
from perturbjax.errors import InputError
from perturbjax.ivl.config import VocabularyName
from perturbjax.records import to_json
from perturbjax.report import Comparison, Entry
from perturbjax.report.words import percent, percent_range, points_range
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.config import Machine, absolute_if_there, check_positive
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_json
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example, Task
from perturbjax.tasks.splits import same_question_key

if TYPE_CHECKING:
    from perturbjax.randopt.setup import Parts


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure what a run made, and its base, on questions that chose nothing; writes RUN/evaluation-NAME.json.
    Of an ensemble its scores by question stand beside it, for perturbjax compare.

    - rows left over: perturbjax evaluate RUN --examples 200
    - your own rows: perturbjax evaluate RUN --task more.jsonl
    - another task: perturbjax evaluate RUN --task boolq --examples 200
    - a value network (ivl) on other bases: perturbjax evaluate RUN --base larger-model,another
    - beside that base fine-tuned: perturbjax evaluate RUN --base larger-model --rivals lora,full,proxy
    - a model that was pretrained further (vpretrain), beside step 0: perturbjax evaluate RUN --task boolq

    An ensemble (randopt) is measured on rows that none of the run's splits used; rows that chose its members or their number are refused. A
    value network (ivl) is measured on the run's test questions, or on those of a task that no demonstration asks."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished run."""
    task: str | None = None
    """Task to measure on, as for randopt; the run's own when left out."""
    examples: int | None = None
    """How many rows; all there are when left out."""
    name: str | None = None
    """NAME in the name of the file written; the task's when left out, of a value network that of the base, the task and the settings."""
    base: tuple[str, ...] = ()
    """Of a value network: the bases that it is added to, one after the other; the one that it was trained beside when left out."""
    vocabulary: VocabularyName | None = None
    """Of a value network, for a base with another vocabulary: exact_first maps equal tokens to each other and the rest by their pieces;
    dtw maps what stands opposite each other in the demonstrations (as the paper; for comparison)."""
    alpha: float = 1.0
    """Of a value network: weight of its logits."""
    gate: float | None = None
    """Of a value network: it counts only where the entropy of the base's distribution, in nats, is above this."""
    rivals: tuple[str, ...] = ()
    """Of a value network: what to train on its demonstrations and measure beside it: lora, full (the base itself, fine-tuned), proxy (its
    own base fine-tuned, the difference added to this one's logits). Kept in RUN/rivals."""
    trust: tuple[str, ...] = ()
    """The module:attribute of the run's own data, comma separated: what a run directory names is imported only where you name
    it here, or with --task."""
    mesh: str | None = None
    """As for randopt: DATAxMODEL, for a model that one device does not hold."""
    compile_cache: str = "auto"
    """As for randopt."""


def run_evaluate(config: EvaluateConfig, console: Console) -> None:
    """Measure, write, show."""
    check_positive(config, "examples")
    check_file_name("name", config.name)
    Machine(mesh=config.mesh).validate()
    chapter = RunDirectory(config.run).chapter
    refuse_consolidated(config.run, chapter)
    if chapter == "caulking":
        raise InputError(f"{config.run}: every cell of a run of caulking was measured already; its report and cells.parquet say how it did")
    if chapter == "vpretrain":
        use_compile_cache(config.compile_cache, console)
        return evaluate_pretrained(config, console)
    if chapter == "ivl":
        use_compile_cache(config.compile_cache, console)
        return evaluate_value(config, console)
    refuse_options(config, EVALUATE_OPTIONS, "randopt")
    use_compile_cache(config.compile_cache, console)
    from perturbjax.inference.fingerprint import task_fingerprint
    from perturbjax.randopt.ensembles import compare_to_base
    from perturbjax.randopt.questions import write_question_scores
    from perturbjax.randopt.setup import make_engine, reopen_ensemble, unused_rows
    from perturbjax.tasks import load_task

    parts, ensemble = reopen_ensemble(config.run, console.note, (*config.trust, config.task or ""))
    own = config.task is None or absolute_if_there(config.task) == parts.config.data.task
    task = parts.task if config.task is None or own else load_task(config.task)
    rows = unused_rows(parts) if own else foreign_rows(parts, task)
    if config.examples is not None and config.examples > len(rows):
        raise InputError(f"--examples {config.examples}: task {task.name} has {len(rows)} rows that the run has not used; ask for fewer")
    rows = rows[: config.examples]
    if not rows:
        raise InputError(f"--task {task.name}: no rows that the run has not used; give --task with other questions")
    template = parts.template if own else task.templates[0]
    engine = make_engine(parts, task, config.mesh)
    compared, scores = compare_to_base(engine, ensemble, engine.prepare(rows, template), parts.config.search.seed, console)
    path = RunDirectory(config.run).evaluation(config.name or task.name)
    record = {
        "task": {"name": task.name, "source": task.source, "fingerprint": task_fingerprint(task, rows)},
        "template": template.name,
        "examples": len(rows),
        "members": [int(index) for index in ensemble.members],
        "model": {"name": parts.model.name, "source": parts.model.source, "fingerprint": parts.fingerprint},
    }
    write_question_scores(path.with_suffix(".parquet"), rows, scores)
    write_json(path, record | to_json(compared))
    console.line(f"{len(rows)} questions of {task.name} that the run has not used, prompt {template.name}")
    console.line(_line("base model", compared.base))
    for k, entry in compared.randopt.items():
        console.line(_line(f"RandOpt @{k}", entry))
    console.line(f"written to {path}")


def foreign_rows(parts: "Parts", task: Task) -> Sequence[Example]:
    """Rows of another task.

    Raises:
        InputError: one of them is in the run's search or select split.
    """
    used = {same_question_key(e): name for name in ("search", "select") for e in getattr(parts.splits, name)}
    rows = task.examples()
    for example in rows:
        if same_question_key(example) in used:
            split = used[same_question_key(example)]
            raise InputError(f"--task {task.name}: row {example.id} is in the run's {split} split, which chose the members; remove it")
    return rows


def _line(label: str, entry: Entry) -> str:
    text = f"{label:<14} {percent(entry.accuracy):>7} right  [{percent_range(entry.interval)[:-2]}]"
    if isinstance(entry, Comparison):
        text += f"  {100 * entry.difference:+.1f} points to the base  [{points_range(entry.difference_interval)}]"
    return text
