"""Countdown: make a target from given numbers with + - * /, each number used exactly once. Puzzles are generated from a seed.

An answer is an expression that keeps the rules which the question states: it parses (``safe_eval``) and uses each number once. One that
does not is no answer and abstains in a vote. Two answers count as one when their **values** are equal, as in the paper's released vote:
"3 * 4 + 5" and "5 + 4 * 3" are one answer written twice. The vote never looks at the target, so it stays a vote and is not a checker with K
tries.
"""

import re
from random import Random

from perturbjax.errors import InputError
from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import GenerationTask, Layout
from perturbjax.tasks.quantity import first_line
from perturbjax.tasks.safe_eval import evaluate

_LARGEST_NUMBER = 99
_TARGETS = range(10, 101)

_SHOTS = (
    ({"question": "Numbers: 3, 7, 20\nTarget: 41"}, "20 + 3 * 7"),
    ({"question": "Numbers: 50, 4, 2, 6\nTarget: 86"}, "(50 - 4) * 2 - 6"),
)

_LAYOUTS = {
    "chat": Layout(body="{question}", cue="Expression:"),
    "tags": Layout(body="{question}"),
    "system": Layout(body="{question}", cue="Answer:", system=True),
    "chat_shots": Layout(body="{question}", shots=_SHOTS),
    "plain_shots": Layout(body="{question}", cue="Expression:", chat=False, shots=_SHOTS),
}

_RULES = "Make an expression that equals the target. Use each of the numbers exactly once, with +, -, *, / and parentheses."
_TEMPLATES = (
    Template("expression", f"{_RULES} Reply with the expression only.", "chat"),
    Template("tags", f"{_RULES} Return the expression in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.", "tags"),
    Template("system", f"You solve Countdown number puzzles. {_RULES} You reply with the expression and nothing else.", "system"),
    Template("few_shot", f"{_RULES} Reply with the expression only.", "chat_shots"),
    Template("plain_few_shot", _RULES, "plain_shots"),
)

_TAGGED = re.compile(r"<answer>([^<]*)</answer>")
_LABEL = re.compile(r"(?:expression|answer):", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+")
_MAX_RUNS = 200
_RUN = re.compile(r"[0-9+\-*/() ]+")
_SIGNS = (("\u00d7", "*"), ("\u00f7", "/"), ("\u2212", "-"), ("\u22c5", "*"))


class Countdown(GenerationTask):
    """Puzzles with three or four numbers from 1 to 99 and a target from 10 to 100, all solvable.

    Args:
        count: how many; fewer are the first ones of more.
        seed: of the puzzles (not of a run's splits).
    """

    name = "countdown"
    templates = _TEMPLATES
    layouts = _LAYOUTS
    max_new_tokens = 64

    def __init__(self, count: int = 2000, seed: int = 0) -> None:
        if not isinstance(count, int) or count < 1:
            raise InputError(f"count {count!r}: a positive number of puzzles is required")
        self.count = count
        self.seed = seed
        self.source = f"Countdown puzzles generated from seed {seed}"

    def load(self) -> tuple[Example, ...]:
        # random.Random.random() is the one method whose sequence Python promises not to change, hence _draw.
        rng = Random(self.seed)
        puzzles: dict[str, Example] = {}
        while len(puzzles) < self.count:
            puzzle = _puzzle(rng)
            if puzzle is not None:
                puzzles.setdefault(puzzle.id, puzzle)
        return tuple(puzzles.values())

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        """An expression that uses each number once.

        Strict: it is the whole of the last <answer> tag, or else of the first line (after an "Expression:" or "Answer:"). Lenient: the last
        such expression among the last 200 anywhere in the text, "= result" or a sentence around it and typographic signs forgiven.
        """
        tagged = _TAGGED.findall(text)
        line = tagged[-1].strip() if tagged else first_line(text)
        if label := _LABEL.match(line):
            line = line[label.end() :].strip()
        if _keeps_rules(line, example):
            return line
        if strict:
            return None
        for sign, plain in _SIGNS:  # a tenth of the time of str.translate
            text = text.replace(sign, plain)
        shortest = 2 * len(example.fields["numbers"]) - 1
        runs = [run.strip() for run in _RUN.findall(text) if len(run) >= shortest and _is_as_long(run, example)]
        return next((run for run in reversed(runs[-_MAX_RUNS:]) if _keeps_rules(run, example)), None)

    def score(self, answer: str | None, example: Example) -> float:
        return float(answer is not None and _keeps_rules(answer, example) and _value(answer) == str(example.fields["target"]))

    def vote_key(self, answer: str, example: Example) -> str:
        return _value(answer) or answer


def _value(expression: str) -> str | None:
    arithmetic = evaluate(expression)
    return str(arithmetic.value) if arithmetic else None


def _is_as_long(expression: str, example: Example) -> bool:
    # Counting the numbers first costs a tenth of an evaluation; a long reply has many pieces to try.
    return len(_NUMBER.findall(expression)) == len(example.fields["numbers"])


def _keeps_rules(expression: str, example: Example) -> bool:
    arithmetic = evaluate(expression) if _is_as_long(expression, example) else None
    return arithmetic is not None and sorted(arithmetic.numbers) == sorted(example.fields["numbers"])


def _draw(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _puzzle(rng: Random) -> Example | None:
    """Join random numbers two at a time until one is left: that is the target, and the way there a solution. None if it is out of range."""
    numbers = [_draw(rng, 1, _LARGEST_NUMBER) for _ in range(_draw(rng, 3, 4))]
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        a, left = parts.pop(_draw(rng, 0, len(parts) - 1))
        b, right = parts.pop(_draw(rng, 0, len(parts) - 1))
        steps = {"+": a + b, "*": a * b}
        if a > b:
            steps["-"] = a - b
        if b > 1 and a % b == 0:
            steps["/"] = a // b
        sign = sorted(steps)[_draw(rng, 0, len(steps) - 1)]
        parts.append((steps[sign], f"{_bracket(left)} {sign} {_bracket(right)}"))
    [(target, solution)] = parts
    if target not in _TARGETS:
        return None
    return Example(
        id=f"{'-'.join(map(str, sorted(numbers)))}={target}",
        question=f"Numbers: {', '.join(map(str, numbers))}\nTarget: {target}",
        answer=solution,
        fields={"numbers": tuple(numbers), "target": target},
    )


def _bracket(expression: str) -> str:
    return expression if expression.isdigit() else f"({expression})"
