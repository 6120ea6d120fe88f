"""The systems of a RandOpt run on the test split: RandOpt at each K, the base, and the controls."""

from dataclasses import dataclass

from perturbjax.report.schema import ComparedEntry, Comparison, Entry

CONTROLS = ("self_consistency", "best_prompt", "random_k")


@dataclass(frozen=True, kw_only=True)
class BaseEntry(Entry):
    """The unperturbed model under the prompt template of the search."""

    prompt: str


@dataclass(frozen=True, kw_only=True)
class PromptEntry(ComparedEntry):
    """The unperturbed model under the template that did best on select."""

    prompt: str


@dataclass(frozen=True, kw_only=True)
class VoteEntry(ComparedEntry):
    """A vote of ``K``."""

    K: int


@dataclass(frozen=True, kw_only=True)
class ControlEntry(VoteEntry):
    """A control with as many votes as the chosen ensemble; ``curve`` has it at every K."""

    curve: dict[str, VoteEntry]


@dataclass(frozen=True, kw_only=True)
class SelfConsistencyEntry(ControlEntry):
    """Samples of the base at the temperature that voted best on select."""

    temperature: float


@dataclass(frozen=True, kw_only=True)
class RandomEntry(ControlEntry):
    """Candidates drawn without looking at their scores; ``members`` in the order of the draw."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class Against:
    """RandOpt compared to each of ``CONTROLS`` at as many votes."""

    self_consistency: Comparison
    best_prompt: Comparison
    random_k: Comparison


@dataclass(frozen=True, kw_only=True)
class RandOptEntry(VoteEntry):
    """The vote of the K best members.

    Attributes:
        against: the controls.
        members_search_mean: mean search score of the members; ``members_test_mean``: on the test split.
    """

    against: Against
    members_search_mean: float
    members_test_mean: float
