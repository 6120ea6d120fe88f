"""RandOpt (Gan and Isola, arXiv 2603.12228): search, racing, ensemble, vote, controls.

``run(Config(...))`` does from Python what ``perturbjax randopt`` does; ``read_scores(run)`` gives the scores of its population.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from perturbjax.randopt.config import Config as Config
from perturbjax.randopt.config import Data as Data
from perturbjax.randopt.config import Machine as Machine
from perturbjax.randopt.config import Run as Run
from perturbjax.randopt.config import Search as Search
from perturbjax.runs.config import Base as Base
from perturbjax.runs.console import SILENT, Progress

if TYPE_CHECKING:
    from perturbjax.randopt.results import Results
    from perturbjax.randopt.scores import Scores


def run(config: Config, progress: Progress = SILENT) -> "Results":
    """Searches, evaluates on held-out questions, and writes the run directory with its report.

    Everything is validated before the run directory is made, and no stage that is done is done again (``Run(resume=True)``).

    Args:
        config: the settings.
        progress: told what goes on; ``runs.console.Console()`` prints it.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.

    >>> from perturbjax import randopt
    >>> config = randopt.Config(data=randopt.Data(task="arc_easy"), search=randopt.Search(population=200, top_k=10))
    >>> results = randopt.run(config)  # doctest: +SKIP
    """
    # The stages need Flax and Orbax, which `import perturbjax` is to do without.
    from perturbjax.randopt.stages import run as run_stages

    return run_stages(config, progress)


def read_scores(run: str | Path, trusted: Collection[str] = ()) -> "Scores":
    """The committed scores of a search: a frozen dataclass of numpy arrays, ``scores`` (N, D) among them, NaN where a candidate was not
    asked (``randopt.scores.Scores``).

    Args:
        run: the run directory, which is not changed; the search may have ended, been stopped, or be in progress.
        trusted: each ``module:attribute`` among the run's data that may be imported.

    Raises:
        InputError: no search there, nothing was committed yet, its state is damaged, or its task has changed.

    >>> from perturbjax import randopt
    >>> found = randopt.read_scores("RUN")  # doctest: +SKIP
    >>> found.index[np.nanmean(found.scores, axis=1) > 0.9]  # doctest: +SKIP
    """
    from perturbjax.randopt.scores import read_scores as read

    return read(run, trusted)
