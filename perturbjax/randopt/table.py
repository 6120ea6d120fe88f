"""What a search knows of its candidates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from perturbjax.randopt.racing import Race
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState


@dataclass
class ScoreTable:
    """What is known of N candidates on D examples.

    Attributes:
        scores: (N, D) float32, NaN where not scored.
        tokens: (N, R) int64, tokens put through the model for each, by round of the race.
        nonfinite: how many candidates had NaN or infinite logits, by round (they score 0 on its examples).
        seconds: time spent scoring, over all processes that worked on the run.
    """

    scores: np.ndarray
    tokens: np.ndarray
    nonfinite: list[int]
    seconds: float = 0.0

    @classmethod
    def empty(cls, race: Race) -> Self:
        """Nothing scored yet."""
        rounds = len(race.ends)
        scores = np.full((race.candidates, race.examples), np.nan, np.float32)
        return cls(scores, np.zeros((race.candidates, rounds), np.int64), [0] * rounds)

    @classmethod
    def of(cls, state: RunState, race: Race) -> Self:
        """As last committed."""
        if not state.step:
            return cls.empty(race)
        return cls(state.tree["scores"].copy(), state.tree["tokens"].copy(), list(state.record["nonfinite"]), state.record["seconds"])

    def commit(self, state: RunState) -> None:
        """Starts to write the table as the state's next step."""
        state.commit(self._tree, {"nonfinite": list(self.nonfinite), "seconds": self.seconds})

    @property
    def done(self) -> np.ndarray:
        """(N,) bool, which candidates are scored on at least the examples of the first round."""
        return ~np.isnan(self.scores[:, 0])

    @property
    def _tree(self) -> dict[str, Any]:
        return {"scores": self.scores, "tokens": self.tokens}


def open_state(directory: Path, race: Race, identity: Identity) -> RunState:
    """The state of a search; ``ScoreTable.of`` reads it. Raises as ``RunState.open``."""
    return RunState.open(directory, identity, ScoreTable.empty(race)._tree)
