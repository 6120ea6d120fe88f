"""Host side of multiple-choice scoring: examples of any length packed into slots of one shape.

A slot is what one pass over the weights takes: R rows of T tokens, several examples side by side in a row. The prefix that all prompts
share stands once at the start of the slot's first row, where every row sees it; a token sees besides its example's prompt and, after the
prompt, its own choice only. So no token is spent on padding between lengths, each prompt is run once for all its choices, and neither the
number of examples nor their lengths reach the compiled program but through a few buckets of rows and of row lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROW_BUCKETS = (256, 512, 1024, 2048, 4096, 8192)
ROWS_BUCKETS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
PREFIX_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
MIN_SLOTS = 64
QUERY_BUCKETS = (64, 128, 256, 512, 1024)
CHOICE_BUCKETS = (2, 4, 8, 16, 32, 64)
PROMPT = -1
"""Branch number of an example's prompt."""
PADDING, SHARED = -1, -2
"""Example numbers of padding and of the shared prefix."""


@dataclass(frozen=True)
class ScoringExample:
    """Token ids of one example: the prompt after the shared prefix, and each choice's continuation."""

    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]

    @property
    def length(self) -> int:
        """Tokens put through the model: the prompt and, of each choice, all but the last."""
        return len(self.prompt) + sum(len(choice) - 1 for choice in self.choices)

    def lay_out(self, single: bool) -> tuple[list[int], list[int], list[int], list[tuple[int, list[int], int]]]:
        """Its tokens, their positions after the prefix, their branches, and what is asked: (place, ids, choice) of each query.

        With ``single``, one query has the ids of all choices; else each token of a choice is asked at the token before it.
        """
        end = len(self.prompt)
        tokens, positions, branches = list(self.prompt), list(range(end)), [PROMPT] * end
        if single:
            return tokens, positions, branches, [(end - 1, [choice[0] for choice in self.choices], 0)]
        asked = []
        for number, choice in enumerate(self.choices):
            places = [end - 1, *range(len(tokens), len(tokens) + len(choice) - 1)]
            asked += [(place, [target], number) for place, target in zip(places, choice, strict=False)]
            tokens += choice[:-1]
            positions += range(end, end + len(choice) - 1)
            branches += [number] * (len(choice) - 1)
        return tokens, positions, branches, asked


@dataclass(frozen=True)
class Packing:
    """Examples packed for one call of the compiled program, and where each result belongs.

    Shapes: S slots, R rows, T tokens a row, P prefix tokens, Q queries a slot, C ids a query.

    Attributes:
        arrays: what the compiled program reads (``programs.choice_values``):
            ``tokens``, ``positions``, ``example``, ``branch`` (S, R, T) int32; an ``example`` is PADDING, SHARED or a number, a ``branch``
            PROMPT or the number of the choice;
            ``lead`` (P,) bool, which of the first P columns of a slot's first row hold the shared prefix;
            ``query`` (S, Q) int32, flat position (row * T + column) whose next-token logits are asked for;
            ``ids`` (S, Q, C) int32, the token ids asked for;
            ``num_valid`` () int32, slots in use; the others are padding.
        examples: (E,) numbers, among all examples, of those packed here: those of one length bucket.
        owner: (N, 4), the (slot, query, example, choice) of each token asked for, in order, ``example`` counting within this packing.
        single: one query holds all choices of an example.
        num_choices: per example.
        tokens: put through the model for one candidate, the prefix once a slot.
    """

    arrays: dict[str, np.ndarray]
    examples: np.ndarray
    owner: np.ndarray
    single: bool
    num_choices: tuple[int, ...]
    tokens: int


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``length``.

    Raises:
        ValueError: none does.
    """
    fitting = [b for b in buckets if b >= length]
    if not fitting:
        raise ValueError(f"{length} tokens: more than the longest supported, {buckets[-1]}")
    return fitting[0]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all share, leaving each at least one token of its own."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(length, min(len(s) for s in sequences) - 1)


def pack(prefix: Sequence[int], examples: Sequence[ScoringExample], slot_tokens: int) -> tuple[Packing, ...]:
    """Packs examples that share ``prefix`` (whose tokens are not part of their prompts), one packing a bucket of row lengths in use.

    Attention costs the square of the row length, so a few long examples get long rows of their own instead of stretching everyone's.
    ``slot_tokens`` bounds R * T, but a slot has at least one row.
    """
    single = all(len(choice) == 1 for e in examples for choice in e.choices)
    width = bucket(max(len(e.choices) for e in examples), CHOICE_BUCKETS) if single else 1
    # With room for the prefix beside it, so that any example fits into any row.
    lengths = [bucket(len(prefix) + e.length, ROW_BUCKETS) for e in examples]
    return tuple(
        _pack_rows(prefix, [examples[i] for i in members], members, single, width, row_tokens, slot_tokens)
        for row_tokens in sorted(set(lengths))
        for members in [[i for i, length in enumerate(lengths) if length == row_tokens]]
    )


def _pack_rows(
    prefix: Sequence[int],
    examples: Sequence[ScoringExample],
    members: Sequence[int],
    single: bool,
    width: int,
    row_tokens: int,
    slot_tokens: int,
) -> Packing:
    lengths, owner = [e.length for e in examples], []
    queries = [1 if single else sum(len(c) for c in e.choices) for e in examples]
    if max(queries) > QUERY_BUCKETS[-1]:
        raise ValueError(f"{max(queries)} choice tokens in one example: more than the {QUERY_BUCKETS[-1]} supported")
    rows_per_slot, slots = _fill(lengths, queries, row_tokens, max(1, slot_tokens // row_tokens), len(prefix))
    most_asked = max(sum(queries[e] for row in slot for e in row) for slot in slots)
    num_slots = max(MIN_SLOTS, 1 << (len(slots) - 1).bit_length())
    shape = (num_slots, rows_per_slot, row_tokens)
    tokens, positions, branch = (np.zeros(shape, np.int32) for _ in range(3))
    example = np.full(shape, PADDING, np.int32)
    query = np.zeros((num_slots, bucket(most_asked, QUERY_BUCKETS)), np.int32)
    ids = np.zeros((*query.shape, width), np.int32)
    lead = (slice(len(slots)), 0, slice(len(prefix)))
    tokens[lead], positions[lead], branch[lead], example[lead] = prefix, np.arange(len(prefix)), PROMPT, SHARED
    for s, slot in enumerate(slots):
        asked = 0
        for r, row in enumerate(slot):
            column = len(prefix) if r == 0 else 0
            for e in row:
                own, places, branches, asked_of = examples[e].lay_out(single)
                here = (s, r, slice(column, column + len(own)))
                tokens[here], positions[here], branch[here], example[here] = own, np.add(places, len(prefix)), branches, e
                for place, targets, choice in asked_of:
                    query[s, asked] = r * row_tokens + column + place
                    ids[s, asked, : len(targets)] = targets
                    owner.append((s, asked, e, choice))
                    asked += 1
                column += len(own)
    held = np.arange(bucket(max(len(prefix), 1), PREFIX_BUCKETS)) < len(prefix)
    arrays = {"tokens": tokens, "positions": positions, "example": example, "branch": branch, "lead": held, "query": query, "ids": ids}
    arrays["num_valid"] = np.asarray(len(slots), np.int32)
    total = len(prefix) * len(slots) + sum(lengths)
    owners = np.asarray(owner, np.int32).reshape(-1, 4)
    return Packing(arrays, np.asarray(members), owners, single, tuple(len(e.choices) for e in examples), total)


def _fill(
    lengths: Sequence[int], queries: Sequence[int], row_tokens: int, most_rows: int, prefix: int
) -> tuple[int, list[list[list[int]]]]:
    """Rows a slot, and slots of rows of example numbers: as few slots as ``most_rows`` allows, then as few rows as these need."""
    rows_needed = -(-(sum(lengths) + prefix) // row_tokens)
    slots = -(-rows_needed // most_rows)
    while True:
        for rows in (r for r in ROWS_BUCKETS if r <= most_rows):
            if rows * slots * row_tokens >= sum(lengths) and (filled := _first_fit(lengths, queries, row_tokens, rows, slots, prefix)):
                return rows, filled
        slots += 1


def _rows_needed(lengths: Sequence[int], row_tokens: int, prefix: int) -> int:
    return -(-(sum(lengths) + prefix) // row_tokens)


def _first_fit(
    lengths: Sequence[int], queries: Sequence[int], row_tokens: int, rows: int, slots: int, prefix: int
) -> list[list[list[int]]] | None:
    """First fit by decreasing length into ``slots`` slots; None if some example finds no room."""
    room = [[row_tokens - (prefix if r == 0 else 0) for r in range(rows)] for _ in range(slots)]
    asked = [0] * slots
    filled: list[list[list[int]]] = [[[] for _ in range(rows)] for _ in range(slots)]
    for e in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = (
            (s, r) for s in range(slots) for r in range(rows)
            if room[s][r] >= lengths[e] and asked[s] + queries[e] <= QUERY_BUCKETS[-1]
        )  # fmt: skip
        if (found := next(fits, None)) is None:
            return None
        s, r = found
        filled[s][r].append(e)
        room[s][r] -= lengths[e]
        asked[s] += queries[e]
    return [slot for slot in filled if any(slot)]


def unpack(packings: Sequence[Packing], values: Sequence[np.ndarray]) -> np.ndarray:
    """Log-probability of each choice from the program's outputs, one (n, S, Q, C) a packing: float64 (n, examples, most choices), -inf
    where an example has fewer.

    Single-token choices come as logits and are normalized over the choices alone: the vocabulary's normalizer is common to them and
    cancels.
    """
    count = sum(len(packing.examples) for packing in packings)
    most = max(max(packing.num_choices) for packing in packings)
    result = np.full((values[0].shape[0], count, most), -np.inf)
    for packing, outputs in zip(packings, values, strict=True):
        for number, choices in zip(packing.examples, packing.num_choices, strict=True):
            result[:, number, :choices] = 0
        for slot, query, example, choice in packing.owner:
            number = packing.examples[example]
            if packing.single:
                asked = packing.num_choices[example]
                logits = outputs[:, slot, query, :asked].astype(np.float64)
                with np.errstate(invalid="ignore"):  # a broken candidate's logits are NaN or infinite, and so its log-probabilities
                    result[:, number, :asked] = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            else:
                result[:, number, choice] += outputs[:, slot, query, 0]
    return result
