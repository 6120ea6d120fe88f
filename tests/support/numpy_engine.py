"""A deterministic engine for tests of evaluation: a real (linear) model, perturbed by the real noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from perturbjax.inference.outputs import Outputs, Running, grade
from perturbjax.noise import Candidate, Noise, perturb
from perturbjax.tasks.base import Example, Prompt, Template

CHOICES = ("red", "green", "blue")
FEATURES = 6


Kind = Literal["choice", "generation"]


class ColorTask:
    """Name the color of a noisy point. As a generation task, a hesitant model gives no strict answer, and answers vary in case."""

    name = "colors"
    source = "drawn by the tests"
    max_new_tokens = 0
    templates = (Template("plain", "Which color?"), Template("shifted", "Think. Which color?"), Template("noisy", "???"))

    kind: Kind

    def __init__(self, kind: Kind = "choice", count: int = 400, seed: int = 0):
        self.kind = kind
        self._count, self._seed = count, seed

    def examples(self) -> Sequence[Example]:
        rng = np.random.default_rng(self._seed)
        centers = np.eye(3, FEATURES)
        gold = rng.integers(0, 3, self._count)
        points = centers[gold] + 0.75 * rng.standard_normal((self._count, FEATURES))
        return [
            Example(f"c{i}", f"point {i}", CHOICES[g], CHOICES, {"x": tuple(x)}) for i, (g, x) in enumerate(zip(gold, points, strict=True))
        ]

    def prompt(self, example: Example, template: Template) -> Prompt:
        return Prompt((), f"{template.instruction} {example.question}", CHOICES)

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        return None if strict and text.endswith("?") else text.rstrip("?")

    def score(self, answer: str | None, example: Example) -> float:
        return float(answer is not None and self.vote_key(answer, example) == example.answer)

    def vote_key(self, answer: str, example: Example) -> str:
        return answer.lower()


def base_params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"w": (np.eye(FEATURES, 3) + 0.55 * rng.standard_normal((FEATURES, 3))).astype(np.float32)}


@dataclass(frozen=True)
class NumpyPrepared:
    examples: tuple[Example, ...]
    template: Template
    x: np.ndarray


class NumpyEngine:
    """``log`` records every call as (what, candidate indices or number of samples, template, ids of the examples)."""

    def __init__(self, task: ColorTask, params, noise: Noise, chunk: int = 4):
        self.task, self.params, self.chunk = task, params, chunk
        self.width = 1
        self.log: list[tuple] = []
        self._perturbed = jax.jit(jax.vmap(lambda candidate: perturb(params, candidate, noise)["w"]))

    def prepare(self, examples: Sequence[Example], template: Template) -> NumpyPrepared:
        x = np.array([example.fields["x"] for example in examples])
        x = x + {"plain": 0.0, "shifted": 0.15, "noisy": 2.0}[template.name] * np.cos(np.arange(x.size).reshape(x.shape))
        return NumpyPrepared(tuple(examples), template, x)

    def logits(self, candidates: Candidate, prepared: NumpyPrepared) -> np.ndarray:
        return np.einsum("bf,nfc->nbc", prepared.x, np.asarray(self._perturbed(candidates), np.float64))

    def run(self, candidates: Candidate, prepared: NumpyPrepared) -> Outputs:
        count = candidates.index.shape[0]
        assert count <= self.chunk or count == 1
        is_base = count == 1 and float(candidates.sigma[0]) == 0.0
        self._note("base" if is_base else "run", tuple(np.asarray(candidates.index).tolist()), prepared)
        return self._outputs(self.logits(candidates, prepared), prepared, np.full(count, 10 * len(prepared.examples)))

    def start(self, candidates: Candidate, prepared: NumpyPrepared) -> Running:
        return Running(lambda: None, lambda: self.run(candidates, prepared))

    def sample(self, prepared: NumpyPrepared, num_samples: int, temperature: float, seed: int) -> Outputs:
        self._note("sample", (num_samples, temperature, seed), prepared)
        logits = self.logits(Candidate.base(1), prepared)
        gumbel = np.random.default_rng(seed).gumbel(size=(num_samples, *logits.shape[1:]))
        tokens = np.full(num_samples, 10 * len(prepared.examples))
        if self.task.kind == "choice":
            tokens[1:] = 0
        return self._outputs(2 * logits / temperature + gumbel, prepared, tokens)

    def reference(self, prepared: NumpyPrepared, rounds: int) -> float:
        return 1000.0

    def _note(self, what: str, detail: tuple, prepared: NumpyPrepared) -> None:
        self.log.append((what, detail, prepared.template.name, tuple(example.id for example in prepared.examples)))

    def _outputs(self, logits: np.ndarray, prepared: NumpyPrepared, tokens: np.ndarray) -> Outputs:
        ordered = np.sort(logits, axis=-1)
        hesitant = (self.task.kind == "generation") & (ordered[..., -1] - ordered[..., -2] < 0.25)
        texts = [
            [
                (CHOICES[c].upper() if (row + b) % 3 == 0 and self.task.kind == "generation" else CHOICES[c])
                + ("?" if hesitant[row, b] else "")
                for b, c in enumerate(best)
            ]
            for row, best in enumerate(logits.argmax(-1))
        ]

        answers, keys, (scores, lenient) = grade(self.task, prepared.examples, texts, np.ones(len(texts), bool))
        return Outputs(tuple(map(tuple, answers)), tuple(map(tuple, keys)), scores, lenient, tokens.astype(np.int64), 0.5, 0)
