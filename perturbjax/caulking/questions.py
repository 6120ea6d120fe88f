"""Questions of given answers for the grid of a language model: encoded once, and packed side by side inside the compiled program.

Axis letters: N questions, B of a batch, G of a row, R = B / G rows, C choices, T tokens of a question after the prefix, W of a row, Q asked
positions of a question, K tokens asked for there.

Questions differ in length, and all begin with the same words (the system's, the template's). So each row holds the prefix once and G
questions after it, each of which sees the prefix and itself (the masks of ``inference.packing``, where rows are packed on the host). The
choices of a question share its prompt. Which questions a step draws is known when it runs, so there are a few widths of a row: the program
is compiled for each, and takes the first that holds the rows of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.packing import PADDING, PROMPT, SHARED, ScoringExample, common_prefix
from perturbjax.inference.programs import packed_mask
from perturbjax.inference.prompts import encode_prompts
from perturbjax.pretrained import Model
from perturbjax.tasks.base import Example, Task, Template

ROW_TOKENS = 384
"""Tokens that a row may have on average: attention costs the square of its width."""
SPREADS = (1.5, 3.0)
"""Widths of a row, in standard deviations of the tokens of G questions above their mean; beside them the width that holds any G."""
MULTIPLE = 8
"""Widths are multiples of it."""


@dataclass(frozen=True)
class Questions:
    """Encoded questions.

    Attributes:
        arrays: ``tokens``, ``positions`` (after the prefix), ``branch`` (N, T): the prompt after the prefix, and where choices have several
            tokens those of each but its last, as ``inference.packing`` lays them out; ``lengths`` (N,);
            ``query`` (N, Q), the tokens whose next token is asked for; ``labels`` (N, Q, K) what for; ``answer`` (N,), the number of the
            right choice; ``asked`` (N, C, Q), 1 where a query is of a choice (without ``single``).
        single: every choice is one token, so that one query (Q = 1) has all of them (K = C); else K = 1.
        prefix: token ids that all questions begin with.
    """

    arrays: dict[str, np.ndarray]
    single: bool
    prefix: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.arrays["answer"])

    def __getitem__(self, rows: slice) -> Questions:
        return Questions({name: array[rows] for name, array in self.arrays.items()}, self.single, self.prefix)

    @property
    def columns(self) -> np.ndarray | None:
        """Token ids that a head is read at, growing; None: all, which a log-probability over the vocabulary needs."""
        return np.unique(self.arrays["labels"]) if self.single else None


def encode_questions(model: Model, task: Task, examples: Sequence[Example], template: Template) -> Questions:
    """Questions as arrays of one shape.

    Raises:
        InputError: a question is longer than the model's context, or they differ in the number of choices.
    """
    prompts, choices = encode_prompts(model, task, examples, template, 0)
    counts = {len(each) for each in choices}
    if len(counts) > 1:
        raise InputError(
            f"`target` {task.name}: questions of one number of choices are required, these have {min(counts)} to {max(counts)}"
        )
    shared = common_prefix(prompts)
    single = all(len(choice) == 1 for each in choices for choice in each)
    laid = [ScoringExample(p[shared:], each).lay_out(single) for p, each in zip(prompts, choices, strict=True)]
    n, t, q, c = len(laid), max(len(each[0]) for each in laid), max(len(each[3]) for each in laid), max(counts)
    tokens, positions, branch = np.zeros((n, t), np.int32), np.zeros((n, t), np.int32), np.full((n, t), PROMPT, np.int32)
    query, labels, asked = np.zeros((n, q), np.int32), np.zeros((n, q, c if single else 1), np.int32), np.zeros((n, c, q), np.float32)
    for number, (own, places, branches, queries) in enumerate(laid):
        here = (number, slice(len(own)))
        tokens[here], positions[here], branch[here] = own, places, branches
        for place, (at, ids, choice) in enumerate(queries):
            query[number, place], labels[number, place], asked[number, choice, place] = at, ids, 1
    lengths = np.array([len(own) for own, *_ in laid], np.int32)
    answer = np.array([example.choices.index(example.answer) for example in examples], np.int32)
    arrays = {"tokens": tokens, "positions": positions, "branch": branch, "lengths": lengths, "query": query, "labels": labels}
    arrays |= {"answer": answer} if single else {"answer": answer, "asked": asked}
    return Questions(arrays, single, tuple(prompts[0][:shared]))


@dataclass(frozen=True)
class Layout:
    """How the questions of a batch lie in rows; hashable, static.

    Attributes:
        prefix: token ids at the beginning of every row.
        group: questions of a row.
        widths: tokens a row may have, growing; the last holds any questions.
    """

    prefix: tuple[int, ...]
    group: int
    widths: tuple[int, ...]

    @staticmethod
    def of(questions: Questions, batch: int) -> Layout:
        """For batches of so many of these questions.

        >>> lengths = np.array([30, 34, 38, 90], np.int32)
        >>> Layout.of(Questions({"lengths": lengths}, True, (1, 2)), 4)
        Layout(prefix=(1, 2), group=4, widths=(272, 344, 368))
        """
        lengths, first = np.asarray(questions.arrays["lengths"]), len(questions.prefix)
        fitting = [g for g in range(1, batch + 1) if batch % g == 0 and (g == 1 or first + g * lengths.mean() <= ROW_TOKENS)]
        group = fitting[-1]
        wanted = [group * lengths.mean() + spread * lengths.std() * group**0.5 for spread in SPREADS]
        highest = group * lengths.max()
        widths = {int(-(-(first + min(tokens, highest)) // MULTIPLE) * MULTIPLE) for tokens in [*wanted, highest]}
        return Layout(questions.prefix, group, tuple(sorted(widths)))

    def tokens(self, questions: int) -> int:
        """Put through the model for so many questions, padding included, at the least width: that of most rows."""
        return -(-questions // self.group) * self.widths[0]

    def needed(self, lengths_B: jax.Array) -> jax.Array:
        """() int32: the number of the first width that holds a batch of questions of these lengths."""
        longest = lengths_B.reshape(-1, self.group).sum(axis=1).max() + len(self.prefix)
        return jnp.sum(longest > jnp.array(self.widths[:-1], jnp.int32)).astype(jnp.int32)


class Rows(NamedTuple):
    """Packed questions, as a decoder takes them: ``tokens`` and ``positions`` (R, W), ``mask`` (R, W, W), and ``query`` (R, G * Q), the
    columns that are asked."""

    tokens: jax.Array
    positions: jax.Array
    mask: jax.Array
    query: jax.Array


def pack_rows(layout: Layout, batch: dict[str, jax.Array], width: int) -> Rows:
    """The B questions of a batch in rows of one of the layout's widths that holds them."""
    group, first = layout.group, len(layout.prefix)
    tokens, positions, branch = (batch[name].reshape(-1, group, batch[name].shape[-1]) for name in ("tokens", "positions", "branch"))
    r, _, t = tokens.shape
    lengths = batch["lengths"].reshape(r, group)
    ends = first + jnp.cumsum(lengths, axis=1)
    starts = ends - lengths
    column = jnp.arange(width)
    # The number of the question that holds a column: how many have ended before it.
    owner = jnp.sum(column[None, :, None] >= ends[:, None], axis=2)
    held = jnp.minimum(owner, group - 1)
    place = held * t + jnp.clip(column[None] - jnp.take_along_axis(starts, held, axis=1), 0, t - 1)
    tokens, positions, branch = (jnp.take_along_axis(each.reshape(r, -1), place, axis=1) for each in (tokens, positions, branch))
    example = jnp.where(owner < group, owner, PADDING)
    if first:
        lead = column[None] < first
        words = jnp.zeros(width, jnp.int32).at[:first].set(jnp.array(layout.prefix, jnp.int32))[None]
        example, tokens = jnp.where(lead, SHARED, example), jnp.where(lead, words, tokens)
        positions = jnp.where(lead, column[None], positions + first)
    query = (batch["query"].reshape(r, group, -1) + starts[:, :, None]).reshape(r, -1)
    return Rows(tokens, positions, packed_mask(example, branch), query)
