"""Which answers to an example count as one in a vote: those of one vote key, and those that the task finds the same, two by two."""

from collections.abc import Callable

from perturbjax.tasks.base import Example, Task

Same = Callable[[str, str, Example], bool]
"""``same(a, b, example)``: whether two answers that have different vote keys count as one all the same."""


def pairwise(task: Task) -> Same | None:
    """A task's own ``same``; None where it has none, and the vote key alone decides."""
    return getattr(task, "same", None)


class AnswerGroups:
    """Groups of the answers to each example, by first come: an answer of a new vote key joins the first group, in the order in which the
    groups appeared, whose first answer is ``same(first, answer, example)``; if there is none it begins a group.

    So only first answers are compared, each pair once, and the number of calls is at most groups x distinct keys. Where ``same`` is an
    equivalence the order of the answers does not matter. Where it is not transitive it does: an answer counts with the first group that
    takes it, and two answers that are the same may be in two groups.
    """

    def __init__(self, task: Task) -> None:
        """
        Args:
            task: says which answers are the same; its examples have unique ids.
        """
        self.task, self._same = task, pairwise(task)
        # By example: vote key -> key of its group; key of a group -> its first answer.
        self._groups: dict[str, dict[str, str]] = {}
        self._firsts: dict[str, dict[str, str]] = {}

    def key(self, answer: str | None, key: str | None, example: Example) -> str | None:
        """The key that an answer counts by, which is the vote key of the first answer of its group; None for an abstention.

        Args:
            answer, key: the answer and its vote key.
            example: that was answered.
        """
        if self._same is None or answer is None or key is None:
            return key
        groups, firsts = self._groups.setdefault(example.id, {}), self._firsts.setdefault(example.id, {})
        if key not in groups:
            same = self._same
            groups[key] = next((group for group, first in firsts.items() if same(first, answer, example)), key)
            if groups[key] == key:
                firsts[key] = answer
        return groups[key]
