"""candidates.parquet: one row a candidate, the same bytes for the same scores."""

from pathlib import Path

import numpy as np

from perturbjax.errors import InputError
from perturbjax.runs.files import write_atomically


def write_candidates(path: Path, sigmas: np.ndarray, scores: np.ndarray) -> None:
    """Write index, sigma, score (mean over the examples scored) and examples_scored of every candidate, atomically.

    Args:
        path: the parquet file.
        sigmas: (N,) float32, the sigma of each candidate.
        scores: (N, D) float32 score matrix, NaN where a candidate was not asked.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "index": pa.array(np.arange(len(scores), dtype=np.uint32)),
            "sigma": pa.array(np.asarray(sigmas, np.float32)),
            "score": pa.array(candidate_scores(scores)),
            "examples_scored": pa.array((~np.isnan(scores)).sum(axis=1).astype(np.int32)),
        }
    )
    write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))


def candidate_scores(scores: np.ndarray) -> np.ndarray:
    """Mean score of each candidate over the examples it was scored on: (N, D) with NaN elsewhere -> (N,) float64."""
    return np.nanmean(scores.astype(np.float64), axis=1)


def read_candidates(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) sigma, score and examples_scored of the candidates.

    Raises:
        InputError: the file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["sigma", "score", "examples_scored"])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); resume the search to write it again") from error
    return table["sigma"].to_numpy(), table["score"].to_numpy(), table["examples_scored"].to_numpy()
