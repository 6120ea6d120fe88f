"""Score matrices (N, D) whose truth is known, for racing rules."""

import numpy as np


def equals(rng: np.random.Generator, size: int, examples: int, changes: int) -> np.ndarray:
    """The least favorable case of a bound: everyone has the same full score, by ``changes`` other answers than a common base each way."""
    base = (np.arange(examples) < 0.8 * examples).astype(np.float32)
    full = np.tile(base, (size, 1))
    right, wrong = np.flatnonzero(base == 1), np.flatnonzero(base == 0)
    rows = np.arange(size)[:, None]
    full[rows, right[rng.random((size, right.size)).argsort(axis=1)[:, :changes]]] = 0
    full[rows, wrong[rng.random((size, wrong.size)).argsort(axis=1)[:, :changes]]] = 1
    return full[:, rng.permutation(examples)]


def relatives(rng: np.random.Generator, size: int, examples: int, changes: int) -> np.ndarray:
    """Candidates as a search sees them: they share a base's answers, redraw about ``changes`` of them, and are of unequal skill."""
    difficulty = rng.beta(0.5, 0.25, examples)
    touched = rng.random((size, examples)) < changes / examples
    skill = 0.15 * rng.standard_normal((size, 1))
    redrawn = rng.random((size, examples)) < np.clip(difficulty + skill, 0, 1)
    return np.where(touched, redrawn, difficulty > 0.4).astype(np.float32)


def graded(rng: np.random.Generator, size: int, examples: int, changes: int) -> np.ndarray:
    """Scores between 0 and 1 of unequal spread: the last quarter of the candidates is wild. ``changes`` is not used."""
    spread = np.where(np.arange(size) < 0.75 * size, 0.15, 0.5)[:, None]
    skill = 0.02 * rng.standard_normal((size, 1))
    return np.clip(0.6 + skill + spread * rng.standard_normal((size, examples)), 0, 1).astype(np.float32)


def far_apart(rng: np.random.Generator, size: int, examples: int, changes: int) -> np.ndarray:
    """Independent answers, skill from 0.2 to 0.95: candidates far apart. ``changes`` is not used."""
    return (rng.random((size, examples)) < np.linspace(0.2, 0.95, size)[:, None]).astype(np.float32)
