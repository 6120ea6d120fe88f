"""One model of an ensemble: merged, distilled, or searched again around the merge; or evolved beside it. One forward pass in place of K.

``run(Config(path, by=...))`` does from Python what ``perturbjax consolidate`` does.
"""

from typing import TYPE_CHECKING

from perturbjax.consolidate.config import Config as Config
from perturbjax.runs.console import SILENT, Progress

if TYPE_CHECKING:
    from perturbjax.consolidate.results import Results


def run(config: Config, progress: Progress = SILENT) -> "Results":
    """Makes one model of the members of a finished run, and measures it beside the base, the vote and controls.

    Args:
        config: the settings.
        progress: told what goes on.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or the run that they name, cannot be used.

    >>> from pathlib import Path
    >>> from perturbjax import consolidate
    >>> results = consolidate.run(consolidate.Config(Path("RUN"), by="merge"))  # doctest: +SKIP
    """
    from perturbjax.consolidate.stages import run as run_stages

    return run_stages(config, progress)
