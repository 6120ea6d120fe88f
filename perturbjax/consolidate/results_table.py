"""A consolidation in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from perturbjax.consolidate.results import CONSOLIDATED, VOTE, Results, Row
from perturbjax.report.words import count, effect_sentence, fact_lines, percent, percent_range, points, points_range


def results_table(results: Results, directory: Path) -> str:
    """The rows, the gate, what it means, and where the model is."""
    return "\n".join(_lines(results, directory))


def _lines(results: Results, directory: Path) -> Iterator[str]:
    first = results.rows[0]
    where = f"{results.select} select and {first.n} test questions"
    of = "evolved from the base" if results.by == "evolve" else f"of {results.members} members by {results.by}"
    yield f"{results.model.name} on {results.task.name}: one model {of}; {where}"
    yield ""
    columns = f"{'right':>7}  {'95 %':<14} {'vs base':>7}  {'95 %':<14} {'vs vote':>7}  {'95 %':<14}"
    yield f"{'test':<18} {columns} {'tokens':>7} {'spent':>10}  chosen on select"
    for row in results.rows:
        yield _line(row)
    yield ""
    yield from fact_lines(_facts(results, directory))
    yield ""
    yield from _sentences(results)


def _line(row: Row) -> str:
    over = "".join(f" {points(each.difference):>7}  {points_range(each.difference_interval):<14}" for each in (row, row.over_vote))
    figures = f"{percent(row.accuracy):>7}  {percent_range(row.interval)[:-2]:<14}{over}"
    return f"{row.name:<18} {figures} {row.question_tokens:>7.0f} {count(row.search_tokens):>10}  {row.option}".rstrip()


def _facts(results: Results, directory: Path) -> Iterator[tuple[str, str]]:
    gate = results.gate
    best = next(each.accuracy for each in gate.tried if (each.arm, each.option) == (gate.arm, gate.option))
    yield "best on select", f"{gate.arm}, {gate.option}: {percent(best)}, the base {percent(gate.base)}"
    several = sum(not each.control for each in gate.tried) > 1
    rule = "one half of the questions chooses, the other measures, over many halves" if several else "on all questions"
    verdict = "above 0, taken" if gate.taken else "not above 0, so the result is the base"
    yield "gate", f"{points(gate.gain)} points over the base ({rule}): {verdict}"
    for note in results.notes:
        yield "made", note
    yield "tokens", "of one test question; spent: to make and to choose the row, the run's own search aside"
    yield "model", f"{directory / 'model'}, for transformers and --model" if results.saved else "none was written: use the base"
    if (directory / "adapter").exists():
        yield "adapter", f"{directory / 'adapter'}, for PEFT and vLLM"
    yield "results", str(directory / "results.json")


def _sentences(results: Results) -> Iterator[str]:
    """What came of it, a null as plainly as a gain."""
    made, vote = results.row(CONSOLIDATED), results.row(VOTE)
    if not results.gate.taken:
        yield "Nothing that was tried beat the base on select by the rule of the gate: the result is the base itself."
        return
    over, interval = points(made.over_vote.difference), points_range(made.over_vote.difference_interval)
    yield f"One model, {made.option}, is right on {percent(made.accuracy)}. {effect_sentence(made)}"
    yield f"The vote takes {vote.models} times the passes; the model's difference to it is {over} points (95 % interval {interval})."
    for each in made.over_controls:
        over, interval = points(each.difference), points_range(each.difference_interval)
        yield f"Its difference to the control, {each.name}, is {over} points (95 % interval {interval})."
