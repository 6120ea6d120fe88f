"""The verdict in plain words, computed from the paired intervals and nothing else."""

from pathlib import Path

from perturbjax.report.schema import Comparison, Headline, Verdict
from perturbjax.report.words import count, percent, points, points_range, probability
from perturbjax.vpretrain.results import START, ArmFigures, Results, SetFigures

NAMES = {
    START: "step 0",
    "plain": "plain pretraining",
    "value": "designed targets",
    "random": "a designer that follows a random direction",
    "uniform": "uniform smoothing",
    "self": "self-distillation",
    "oracle": "oracle targets",
    "fine_tuning": "fine-tuning on the feedback",
}
"""Mode -> words."""


def headline(results: Results) -> Headline:
    """Grades the run's own arm beside plain pretraining at equal steps and batch, or beside step 0 where plain was not trained."""
    own, name, figures = results.own, *first_set(results.own)
    compared, against = basis(figures)
    verdict: Verdict = compared.verdict if compared is not None else "no clear effect"
    subject = NAMES[own.mode][0].upper() + NAMES[own.mode][1:]
    title = {
        "helped": f"{subject} did better than {against}",
        "hurt": f"{subject} did worse than {against}",
        "no clear effect": f"No clear effect of {NAMES[own.mode]} beside {against}",
    }[verdict]
    sentences = [_effect(results, name, figures), *_answers(figures), *_controls(results, name), *_general(results), _cost(own)]
    return Headline(verdict, title, tuple(sentences))


def first_set(arm: ArmFigures) -> tuple[str, SetFigures]:
    """The feedback set that headlines are about, and its figures."""
    return next(iter(arm.sets.items()))


def basis(figures: SetFigures) -> tuple[Comparison | None, str]:
    """What an arm is graded by: its difference to plain pretraining, else to step 0; and that one's name."""
    if figures.against_plain is not None:
        return figures.against_plain, NAMES["plain"]
    return figures.against_start, NAMES[START]


def label(name: str) -> str:
    """A feedback set's name for people: a task's, or a file's without its folder."""
    return Path(name).name if name.endswith((".jsonl", ".txt")) else name


def nats(difference: float) -> str:
    """0.0234 -> ``+0.023``."""
    return f"{difference:+.3f}"


def nats_range(comparison: Comparison) -> str:
    """``-0.010 to +0.030``."""
    low, high = comparison.difference_interval
    return f"{nats(low)} to {nats(high)}"


def _effect(results: Results, name: str, figures: SetFigures) -> str:
    compared, against = basis(figures)
    start = next(arm for arm in results.arms if arm.mode == START).sets[name]
    text = f"On {count(figures.n)} test rows of {label(name)} the loss of the answers was {figures.loss:.3f} nats a token, "
    text += f"at step 0 {start.loss:.3f}."
    if compared is None:
        return text
    text += f" Beside {against} that is {nats(compared.difference)} nats better (95 % interval {nats_range(compared)})"
    if compared.verdict == "no clear effect":
        return f"{text}, not clearly different from zero (sign test p = {probability(compared.p_value)})."
    return f"{text}, more than chance explains."


def _answers(figures: SetFigures) -> list[str]:
    if figures.accuracy is None:
        return []
    entry, against = figures.accuracy, figures.accuracy_against_plain
    text = f"It got {percent(entry.accuracy)} of the questions right: {points(entry.difference)} points to step 0"
    text += f" (95 % interval {points_range(entry.difference_interval)})"
    if against is not None:
        text += f", {points(against.difference)} to plain pretraining ({points_range(against.difference_interval)})"
    return [f"{text}."]


def _controls(results: Results, name: str) -> list[str]:
    others = [arm for arm in results.arms if arm.mode not in (START, "plain", results.own.mode)]
    return [f"For comparison, {NAMES[arm.mode]} ended at {arm.sets[name].loss:.3f}." for arm in others]


def _general(results: Results) -> list[str]:
    start, own, plain = results.arms[0], results.own, results.arm("plain")
    if own.general is None or start.general is None:
        return []
    beside = f", with plain pretraining {plain.general:.3f}" if plain is not None and plain is not own and plain.general is not None else ""
    return [f"On text of another domain its loss was {own.general:.3f}, at step 0 {start.general:.3f}{beside}."]


def _cost(own: ArmFigures) -> str:
    text = f"The price: {count(own.tokens)} tokens of training in {own.seconds:.0f} s"
    if not own.updates and not own.skipped:
        return f"{text}."
    return f"{text}, with {count(own.updates)} updates of the designer" + (f" and {own.skipped} skipped." if own.skipped else ".")
