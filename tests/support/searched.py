"""A run directory as a search leaves it, with scores made up: nothing was searched."""

from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.randopt import config as randopt
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import Parts, describe_run, load_parts
from perturbjax.randopt.table import ScoreTable, open_state
from perturbjax.runs.config import Base
from perturbjax.runs.rundir import RunDirectory
from support.cli_tiny import MODEL, write_questions


def searched_parts(folder: Path, **search: Any) -> Parts:
    """What a search of 6 candidates on 4 questions is made of; ``search``: settings of ``randopt.Search`` besides."""
    data = randopt.Data(str(write_questions(folder / "even.jsonl", 24)), 4, 3, 5)
    return load_parts(randopt.Config(Base(str(MODEL), "float32"), data, randopt.Search(6, 2, (0.01, 0.1), **search)), lambda _: None)


def searched_run(parts: Parts, path: Path, scores: np.ndarray | None = None) -> RunDirectory:
    """The run with an ensemble, and with these (6, 4) scores committed if any are given."""
    directory = RunDirectory(path)
    directory.create(parts.identity, describe_run(parts))
    if scores is None:
        return directory
    with open_state(directory.state, parts.config.race, parts.identity) as state:
        ScoreTable(scores, np.full((len(scores), 1), 9), [0], 1.0).commit(state)
    return directory


def save_ensemble(parts: Parts, directory: RunDirectory) -> None:
    """Members 5 and 2."""
    Ensemble(parts.population, [5, 2], parts.noise, parts.fingerprint, [0.5, 0.25]).save(directory.ensemble)
