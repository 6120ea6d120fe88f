"""Three disjoint splits: search scores candidates, select makes every choice, test is touched once, at the end."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from perturbjax.errors import InputError
from perturbjax.tasks.base import Example


@dataclass(frozen=True)
class Splits:
    """Disjoint examples of one task.

    Attributes:
        search: scores the candidates (D of them).
        select: chooses sigma, K, prompt template and sampling temperature.
        test: measured once, with everything chosen.
    """

    search: tuple[Example, ...]
    select: tuple[Example, ...]
    test: tuple[Example, ...]

    def sizes(self) -> dict[str, int]:
        return {"search": len(self.search), "select": len(self.select), "test": len(self.test)}


def make_splits(examples: Sequence[Example], search: int, select: int, test: int, seed: int) -> Splits:
    """Assign the examples to three disjoint splits of the asked sizes.

    They are filled in the order of ``in_order``: the test split first and select second, so a bigger search split leaves the test questions
    as they were.

    Raises:
        InputError: a size is not a positive integer, an id occurs twice, or there are fewer distinct examples than asked for.
    """
    sizes = {"search": search, "select": select, "test": test}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"`{name}_examples` {size}: a positive integer is required; every split needs examples")
    distinct = in_order(examples, seed)
    needed = search + select + test
    if len(distinct) < needed:
        repeated = len(examples) - len(distinct)
        raise InputError(
            f"`search_examples` {search} + `select_examples` {select} + `test_examples` {test}: disjoint splits need {needed} examples, "
            f"the task has {len(distinct)}" + (f" ({repeated} repeated ones not counted)" if repeated else "") + "; "
            f"lower one of the three by {needed - len(distinct)} in all, or use a bigger task"
        )
    return Splits(
        test=tuple(distinct[:test]),
        select=tuple(distinct[test : test + select]),
        search=tuple(distinct[test + select : needed]),
    )


def in_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order of the seed, each question once.

    The order is that of sha256(seed, id): it depends on nothing but the seed and the examples' ids, so it is the same on every platform
    and with every library version (numpy does not promise that of its permutations, NEP 19) and does not depend on the order of the rows.
    Rows that ask the same (``same_question_key``) under different ids would put one question into two splits; only the first of them in
    that order is taken.

    Raises:
        InputError: an id occurs twice.
    """
    ((twice, times),) = Counter(example.id for example in examples).most_common(1) or [("", 0)]
    if times > 1:
        raise InputError(f"`task`: example id {twice!r} occurs more than once; ids must be unique to keep the splits disjoint")
    ordered = sorted(examples, key=lambda example: (hashlib.sha256(f"{seed}\0{example.id}".encode()).digest(), example.id))
    return list({same_question_key(example): example for example in reversed(ordered)}.values())[::-1]


def same_question_key(example: Example) -> tuple[str, str, str]:
    """Equal for two examples exactly where they ask the same: question, options in their order, and fields (a BoolQ passage).

    Ids, gold answers and white space around the question do not count. A task that answers by letter keeps the options' texts in its
    fields, so they are compared in place of the letters; the list "A. ..." that is made of them says nothing more. How answers are matched
    is no part of what is asked.
    """
    options = example.fields.get("options", example.choices)
    fields = sorted((name, value) for name, value in example.fields.items() if name not in ("options", "listed", "match"))
    return example.question.strip(), repr(tuple(options)), repr(fields)
