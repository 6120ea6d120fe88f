r"""MATH-500: competition problems with answers in LaTeX (Hendrycks et al. 2021; the 500 of Lightman et al. 2023).

Every template asks for the answer in ``\boxed{}``, the data set's own format. **Strict** reads the last box; **lenient** falls back on what
follows "the answer is", then on the last formula, then on a reply that has no words beside each other, then on the last number. An answer
is right if it is written as the gold one is, or if math-verify finds the two equal ("1/2" and "0.5"), which happens in a process of its own
(``math_process``).
"""

import functools
import importlib.util
import re
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.line_process import LineProcess
from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import GenerationTask, Layout
from perturbjax.tasks.quantity import find_numbers, normalize_number
from perturbjax.tasks.sources import Source

SOURCE = Source("MATH-500, test split", "oe_eval_tasks/minerva_math_500/gold_bpb_0shot", "HuggingFaceH4/MATH-500", None, "test")

_SHOTS = (
    (
        {"question": "What is the area of a square whose diagonal is $6$?"},
        "The side is $6/\\sqrt{2} = 3\\sqrt{2}$, so the area is $(3\\sqrt{2})^2 = 18$. The answer is $\\boxed{18}$.",
    ),
    (
        {"question": "Write $\\frac{x^2 - 9}{x + 3}$ in simplest form for $x \\neq -3$."},
        "Since $x^2 - 9 = (x + 3)(x - 3)$, the fraction is $x - 3$. The answer is $\\boxed{x - 3}$.",
    ),
)

_LAYOUTS = {
    "chat": Layout(body="Problem: {question}"),
    "bare": Layout(body="{question}"),
    "system": Layout(body="{question}", system=True),
    "shots": Layout(body="{question}", shots=_SHOTS),
    "plain_shots": Layout(body="Problem: {question}", cue="Solution:", chat=False, shots=_SHOTS),
}

_TEMPLATES = (
    Template("steps", "Solve the problem step by step. Put the final answer in \\boxed{}.", "chat"),
    Template("concise", "Solve the problem in a few short sentences and write the answer in \\boxed{}.", "bare"),
    Template("system", "You solve problems in mathematics. You show each step and put the final answer in \\boxed{}.", "system"),
    Template("few_shot", "Solve each problem. Put the final answer in \\boxed{}.", "shots"),
    Template("plain_few_shot", "", "plain_shots"),
)

_LONGEST = 300
"""Characters of an answer that is compared; the longest gold answer has 53."""
_BOX = "\\boxed{"
_NEXT_PROBLEM = re.compile(r"\n[ \t]*(?:Question|Problem):")
_STATED = re.compile(r"\banswer\b[^.\n]{0,40}?(?:\bis|:)[ \t]*:?")
_FORMULA = re.compile(r"\$([^$\n]+)\$")
_PROSE = re.compile(r"[A-Za-z]{2}[ ,]+[A-Za-z]{2}|\n")
_SPACING = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![A-Za-z])|\^\\circ|\^\{\\circ\}|[\s$]")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")


def boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{...}``, braces balanced; None without one, or if it is not closed.

    >>> boxed(r"So $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOX)
    for brace in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[begin : begin + brace.start()].strip() or None
    return None


def normalize_latex(text: str) -> str:
    r"""One spelling for answers that are written alike: no spaces, dollars, degrees and sizes of brackets, numbers as numbers.

    >>> [normalize_latex(text) for text in (r"\left( 3, \dfrac{1}{2} \right)", r"\text{ even }", "$1,000.0$", r"90^\circ")]
    ['(3,\\frac{1}{2})', 'even', '1000', '90']
    """
    plain = _SPACING.sub("", _TEXT.sub(r"\1", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").removesuffix(".")
    return normalize_number(plain) or plain


_PROCESS = LineProcess(str(Path(__file__).with_name("math_process.py")))


@functools.lru_cache(4096)  # candidates give the same answers in every batch
def _equal(gold: str, answer: str) -> bool:
    reply = _PROCESS.ask({"gold": gold, "answer": answer})
    return reply is not None and reply["equal"]


class Math500(GenerationTask):
    """The 500 problems; ``fields["level"]`` is 1 to 5."""

    name = "math500"
    templates = _TEMPLATES
    layouts = _LAYOUTS
    max_new_tokens = 512
    version = 1

    def __init__(self) -> None:
        self.source = str(SOURCE)

    def load(self) -> tuple[Example, ...]:
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("`task`: math500 is graded by math-verify, which is not installed: pip install 'perturbjax[math]'")
        if not _equal("\\frac{1}{2}", "0.5"):  # else every answer that needs it would be wrong
            raise InputError(
                "`task`: math500 is graded by math-verify, which does not work here: pip install --force-reinstall math-verify"
            )
        # The field "answer" of the package's rows was damaged by an evaluation's own rewriting (\infty is "\iny"): the box has it whole.
        return tuple(
            Example(f"test-{index}", row["problem"].strip(), boxed(row["solution"]) or "", fields={"level": row["level"]})
            for index, row in enumerate(SOURCE.rows())
        )

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        text = _NEXT_PROBLEM.split(text, maxsplit=1)[0]
        if (answer := boxed(text)) is not None or strict:
            return answer
        if stated := [match.end() for match in _STATED.finditer(text)]:
            said = text[stated[-1] :].split("\n", 1)[0].strip(" *")
            formula = _FORMULA.match(said)
            if said := formula.group(1) if formula else said.removesuffix("."):
                return said
        if formulas := _FORMULA.findall(text):
            return formulas[-1].strip()
        if text.strip() and not _PROSE.search(text.strip()):
            return text.strip()
        numbers = find_numbers(text)
        return numbers[-1] if numbers else None

    def score(self, answer: str | None, example: Example) -> float:
        if answer is None or len(answer) > _LONGEST:
            return 0.0
        same = normalize_latex(answer) == normalize_latex(example.answer)
        return float(same or _equal(example.answer, answer.replace("$", "")))

    def vote_key(self, answer: str, example: Example) -> str:
        return normalize_latex(answer)

    def same(self, a: str, b: str, example: Example) -> bool:
        """As ``score`` compares an answer with the gold one, ``a`` in its place. Two numbers of different keys are not asked about."""
        if max(len(a), len(b)) > _LONGEST or (normalize_number(a) and normalize_number(b)):
            return False
        return _equal(a.replace("$", ""), b.replace("$", ""))
