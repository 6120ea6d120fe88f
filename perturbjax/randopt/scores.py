"""The scores of a population, read from a run and written for other programs: a matrix of candidates and examples."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perturbjax.errors import InputError
from perturbjax.randopt.screened import read_screening, scored_candidates
from perturbjax.randopt.setup import reopen_questions
from perturbjax.randopt.table import read_table
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import write_atomically
from perturbjax.runs.rundir import RunDirectory


@dataclass(frozen=True)
class Scores:
    """What N candidates scored on D examples, as far as a search has come.

    Candidate i is ``config.search.to_population()[index[i]]`` of the settings in the run's config.json. Of a search by halving, N is what
    it has chosen so far.

    Attributes:
        scores: (N, D) float32 strict scores between 0 and 1, NaN where a candidate was not asked: the search has not come so far, or a
            race stopped it.
        index: (N,) int64, the candidates' places in the population, ascending: 0 to N - 1 unless a searcher chose others.
        sigma: (N,) float32, their noise scales.
        seed: () int64, that of the population.
        example: (D,) text, ids of the examples, in the order in which a race asks them.
        split: (D,) text, the split of each example. Only the search split is asked of a whole population.
    """

    scores: np.ndarray
    index: np.ndarray
    sigma: np.ndarray
    seed: np.ndarray
    example: np.ndarray
    split: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """(N, D) bool, where there is a score."""
        return ~np.isnan(self.scores)


def read_scores(run: str | Path, trusted: Collection[str] = (), progress: Progress = SILENT) -> Scores:
    """The committed scores of a search, whether it has ended, was stopped or is in progress. Loads its task, but no model.

    Args:
        run: the run directory, which is not changed.
        trusted: each ``module:attribute`` among the run's data that may be imported.
        progress: told of damage that was worked around.

    Raises:
        InputError: no search there, nothing was committed yet, its state is damaged, or its task has changed.
    """
    directory = RunDirectory(Path(run))
    config, questions = reopen_questions(directory.path, trusted)
    table = read_table(directory, config.race, progress.note)
    candidates = scored_candidates(config.search, read_screening(directory, config.search), table.scores)
    positions, examples = np.arange(len(candidates)), questions.splits.search
    return Scores(
        scores=table.scores[: len(candidates)],
        index=candidates.index_of(positions),
        sigma=candidates.sigma_of(positions),
        seed=np.asarray(config.search.seed, np.int64),
        example=np.array([example.id for example in examples], np.str_),
        split=np.full(len(examples), "search"),
    )


def write_scores(path: Path, scores: Scores) -> None:
    """Writes the scores atomically, in the format that the file's name ends with; equal scores give equal bytes.

    ``.npz`` holds the arrays of ``Scores`` by name. ``.parquet`` holds a row for each score that there is, candidate by candidate: seed,
    index, sigma, example, split, score.

    Raises:
        InputError: the name ends with another suffix.
    """
    check_format(path)
    write_atomically(path, lambda file: FORMATS[path.suffix](file, scores))


def check_format(path: Path) -> None:
    """Raise ``InputError`` unless scores can be written to a file of this name."""
    if path.suffix not in FORMATS:
        raise InputError(f"`out` {path}: a name that ends with {' or '.join(FORMATS)} is required")


def _write_npz(file: BinaryIO, scores: Scores) -> None:
    arrays: dict[str, Any] = vars(scores)
    np.savez_compressed(file, **arrays)


def _write_parquet(file: BinaryIO, scores: Scores) -> None:
    row, column = np.nonzero(scores.asked)
    columns = {
        "seed": pa.array(np.full(len(row), scores.seed)),
        "index": pa.array(scores.index[row].astype(np.uint32)),
        "sigma": pa.array(scores.sigma[row]),
        "example": pa.DictionaryArray.from_arrays(pa.array(column.astype(np.int32)), pa.array(scores.example.tolist())),
        "split": pa.array(scores.split[column].tolist()).dictionary_encode(),
        "score": pa.array(scores.scores[row, column]),
    }
    pq.write_table(pa.table(columns), file, compression="zstd")


FORMATS: dict[str, Callable[[BinaryIO, Scores], None]] = {".npz": _write_npz, ".parquet": _write_parquet}
"""How scores are written, by the suffix of the file."""
