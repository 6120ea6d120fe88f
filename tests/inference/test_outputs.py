"""Outputs of several models: rows taken and chunks joined are those of the whole."""

import numpy as np

from perturbjax.inference.outputs import Outputs


def outputs(models: range, choice: bool = True) -> Outputs:
    """Of models whose every figure is made of their number, on two examples."""
    number = np.array(models)[:, None] + np.zeros(2, np.float32)
    answers = tuple((str(i), None) for i in models)
    log_probs = np.repeat(number[..., None], 3, axis=2) if choice else None
    row_steps = None if choice else number.astype(np.int64)
    reply_tokens = None if choice else np.repeat(number[..., None], 4, axis=2).astype(np.int32)
    keys = tuple((str(i % 2), None) for i in models)
    return Outputs(answers, keys, number, -number, np.array(models, np.int64), 0.5, 1, log_probs, row_steps, reply_tokens)


def assert_equal(mine: Outputs, theirs: Outputs) -> None:
    assert (mine.answers, mine.keys) == (theirs.answers, theirs.keys)
    for name in ("scores", "lenient", "tokens", "log_probs", "row_steps", "reply_tokens"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_chunks_joined_are_the_whole():
    for choice in (True, False):
        joined = Outputs.concatenate([outputs(range(3), choice), outputs(range(3, 7), choice), outputs(range(7, 8), choice)])
        assert_equal(joined, outputs(range(8), choice))
        assert (joined.seconds, joined.nonfinite) == (1.5, 3)


def test_taken_rows_stand_in_the_given_order():
    whole = outputs(range(6))
    taken = whole.take([4, 1, 1])
    parts = [outputs(range(i, i + 1)) for i in (4, 1, 1)]
    assert_equal(taken, Outputs.concatenate(parts))
    assert (taken.seconds, taken.nonfinite) == (whole.seconds, whole.nonfinite)
    assert outputs(range(2), choice=False).take(np.array([1])).log_probs is None
