"""Caulking (Fukuchi, Hataya & Matsui, arXiv 2602.04233): how many target samples does a pretrained model save?

``run_grid`` trains a small caulk for every pretraining quality, number of samples, seed and method of any JAX function;
``sample_complexity`` says how many samples an error takes (of a run's cells too: ``read_cells``); ``run(Config(...))`` does from Python
what ``perturbjax caulking`` does. The paper's definitions and code are not public: this is a reconstruction (NOTES.md).
"""

from typing import TYPE_CHECKING

from perturbjax.caulking.cells import Cell as Cell
from perturbjax.caulking.cells import Measured as Measured
from perturbjax.caulking.cells import read_cells as read_cells
from perturbjax.caulking.complexity import sample_complexity as sample_complexity
from perturbjax.caulking.config import Bases as Bases
from perturbjax.caulking.config import Config as Config
from perturbjax.caulking.config import Data as Data
from perturbjax.caulking.config import Grid as Grid
from perturbjax.caulking.grid import run_grid as run_grid
from perturbjax.caulking.program import Fitting as Fitting
from perturbjax.caulking.program import Method as Method
from perturbjax.runs.config import Machine as Machine
from perturbjax.runs.config import Run as Run
from perturbjax.runs.console import SILENT, Progress

if TYPE_CHECKING:
    from perturbjax.caulking.results import Results


def run(config: Config, progress: Progress = SILENT) -> "Results":
    """Trains and measures every cell of a grid on a language model, and writes the run directory.

    Everything is validated before the run directory is made, and no cell that is done is done again (``Run(resume=True)``).

    Args:
        config: the settings.
        progress: told what goes on; ``runs.console.Console()`` prints it.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.

    >>> from perturbjax import caulking
    >>> config = caulking.Config(grid=caulking.Grid(samples=(16, 64, 256), methods=("lora", "scratch")))
    >>> results = caulking.run(config)  # doctest: +SKIP
    """
    # The stages need Flax, optax and Orbax, which reading settings does without.
    from perturbjax.caulking.stages import run as run_stages

    return run_stages(config, progress)
