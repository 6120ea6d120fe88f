"""The verdict in plain words, computed from the paired intervals and nothing else."""

from collections import Counter
from collections.abc import Iterable
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
WITH_DESIGNER = ("value", "random")
"""Modes with a designer."""
SHUT = 0.01
"""Of a target's weight: where less lies on other tokens than the true one, the page says that the designer did next to nothing."""
STILL = 0.01
"""Total variation below which the page says that a designer hardly moved."""


def headline(results: Results) -> Headline:
    """Grades the run's own arm on its first feedback set, beside plain pretraining at equal steps and batch, or step 0 without it."""
    own, name, figures = results.own, *first_set(results.own)
    shown = labels(own.sets)
    compared, against = basis(figures)
    verdict: Verdict = compared.verdict if compared is not None else "no clear effect"
    subject = NAMES[own.mode][0].upper() + NAMES[own.mode][1:]
    title = {
        "helped": f"{subject} did better than {against}",
        "hurt": f"{subject} did worse than {against}",
        "no clear effect": f"No clear effect of {NAMES[own.mode]} beside {against}",
    }[verdict]
    several = len(own.sets) > 1
    if several:
        title += f", on {shown[name]}"
    sentences = [text for each, found in own.sets.items() for text in (_effect(results, each, shown[each], found), *_answers(found))]
    sentences += [*_controls(results, name, shown[name] if several else None), *_general(results)]
    idle = idleness(own)
    sentences += [*([] if idle is None else [idle]), _cost(own)]
    return Headline(verdict, title, tuple(sentences))


def idleness(own: ArmFigures) -> str | None:
    """That a designer did next to nothing, and why: it was never updated, its targets are the true tokens, or it is what it began as. None
    where it did something, and of an arm without one."""
    if own.mode not in WITH_DESIGNER:
        return None
    if not own.updates:
        why = f" ({count(own.skipped)} updates were skipped, their value was not finite)" if own.skipped else ""
        return f"The designer was never updated{why}: all targets were the true tokens, as in plain pretraining."
    alpha, off, start = own.alpha, own.off_true if own.off_true is not None else own.alpha, own.alpha_start
    if alpha is not None and off is not None and off < SHUT:
        began = f", {start:.2g} before its first update" if start is not None else ""
        if alpha >= SHUT:
            why = "what it leans to is the true token itself"
        else:
            why = "its gate has shut" if start is not None and start >= SHUT else "its gate is all but shut"
        shares = f"mean alpha is {alpha:.2g}{began}, and {percent(off)} of a target lies on other tokens than the true one"
        return f"The designer does next to nothing at the end: {why}. There {shares}, so the steps are nearly those of plain pretraining."
    if own.drift is not None and own.drift < STILL:
        moved = f"on the first rows of the corpus its targets differ from those that it began with by {percent(own.drift)} of their weight"
        return f"The designer hardly moved: {moved}. What it does is what it did before any update."
    return None


def first_set(arm: ArmFigures) -> tuple[str, SetFigures]:
    """The feedback set that headlines are about, and its figures."""
    return next(iter(arm.sets.items()))


def basis(figures: SetFigures) -> tuple[Comparison | None, str]:
    """What an arm is graded by: its difference to plain pretraining, else to step 0; and that one's name."""
    if figures.against_plain is not None:
        return figures.against_plain, NAMES["plain"]
    return figures.against_start, NAMES[START]


def labels(names: Iterable[str]) -> dict[str, str]:
    """Names of feedback sets -> what people read: of a task its name, of a file the shortest end of its path that no other of them has.

    >>> list(labels(["old/a.jsonl", "new/a.jsonl", "old/b.jsonl", "gsm8k"]).values())
    ['old/a.jsonl', 'new/a.jsonl', 'b.jsonl', 'gsm8k']
    """
    parts = {name: Path(name).parts if name.endswith((".jsonl", ".txt")) else (name,) for name in names}

    def ends(length: int) -> dict[str, str]:
        return {name: str(Path(*each[-length:])) for name, each in parts.items()}

    found = ends(1)
    for length in range(2, max(map(len, parts.values()), default=0) + 1):
        times = Counter(found.values())
        found |= {name: end for name, end in ends(length).items() if times[found[name]] > 1}
    return found


def nats(difference: float) -> str:
    """0.0234 -> ``+0.023``."""
    return f"{difference:+.3f}"


def seconds(value: float) -> str:
    """0.1621 -> ``0.16 s``, 1234.5 -> ``1,234 s``."""
    return f"{count(value)} s" if value >= 100 else f"{value:.2g} s"


def nats_range(comparison: Comparison) -> str:
    """``-0.010 to +0.030``."""
    low, high = comparison.difference_interval
    return f"{nats(low)} to {nats(high)}"


def _effect(results: Results, name: str, shown: str, figures: SetFigures) -> str:
    compared, against = basis(figures)
    start = next(arm for arm in results.arms if arm.mode == START).sets[name]
    text = f"On {count(figures.n)} test rows of {shown} the loss of the answers was {figures.loss:.3f} nats a token, "
    text += f"at step 0 {start.loss:.3f}."
    if compared is None:
        return text
    word = "better" if compared.difference >= 0 else "worse"
    text += f" Beside {against} that is {abs(compared.difference):.3f} nats {word} (95 % interval of the gain {nats_range(compared)})"
    if compared.verdict != "no clear effect":
        return f"{text}, more than chance explains."
    low, high = compared.difference_interval
    p_value = f"sign test p = {probability(compared.p_value)}"
    if low <= 0 <= high:
        return f"{text}, not clearly different from zero ({p_value})."
    return f"{text}. The interval excludes zero, but too few rows agree on it to rule out chance ({p_value})."


def _answers(figures: SetFigures) -> list[str]:
    if figures.accuracy is None:
        return []
    entry, against = figures.accuracy, figures.accuracy_against_plain
    text = f"It got {percent(entry.accuracy)} of the questions right: {points(entry.difference)} points to step 0"
    text += f" (95 % interval {points_range(entry.difference_interval)})"
    if against is not None:
        text += f", {points(against.difference)} to plain pretraining ({points_range(against.difference_interval)})"
    return [f"{text}."]


def _controls(results: Results, name: str, shown: str | None) -> list[str]:
    others = [arm for arm in results.arms if arm.mode not in (START, "plain", results.own.mode)]
    where = f", on {shown}," if shown is not None else ""
    return [_control(NAMES[results.own.mode], f"{NAMES[arm.mode]}{where}", arm.sets[name]) for arm in others]


def _control(own: str, control: str, figures: SetFigures) -> str:
    text, against = f"For comparison, {control} ended at {figures.loss:.3f}", figures.own_against
    if against is None:
        return f"{text}."
    word = {"helped": "better", "hurt": "worse"}.get(against.verdict)
    text = f"{text}: {own} did {f'clearly {word}' if word else 'neither clearly better nor clearly worse'}"
    return f"{text} ({nats(against.difference)} nats, 95 % interval {nats_range(against)})."


def _general(results: Results) -> list[str]:
    start, own, plain = results.arms[0], results.own, results.arm("plain")
    if own.general is None or start.general is None:
        return []
    beside = f", with plain pretraining {plain.general:.3f}" if plain is not None and plain is not own and plain.general is not None else ""
    return [f"On text of another domain its loss was {own.general:.3f}, at step 0 {start.general:.3f}{beside}."]


def _cost(own: ArmFigures) -> str:
    text = f"The price: {count(own.tokens)} tokens of training in {seconds(own.seconds)}"
    if not own.updates and not own.skipped:
        return f"{text}."
    what = "designer" if own.mode in WITH_DESIGNER else "direction"
    return f"{text}, with {count(own.updates)} updates of the {what}" + (f" and {own.skipped} skipped." if own.skipped else ".")
