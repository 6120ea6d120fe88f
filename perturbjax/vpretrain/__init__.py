"""V-Pretraining (Ke & Fanti, arXiv 2601.22108): verified feedback steers further pretraining, which never trains on it.

``run(Config(...))`` does from Python what ``perturbjax vpretrain`` does; ``value`` and ``steering`` serve any designed task, and ``vision``
has one on images.
"""

from typing import TYPE_CHECKING

from perturbjax.runs.config import Base as Base
from perturbjax.runs.config import Machine as Machine
from perturbjax.runs.config import Run as Run
from perturbjax.runs.console import SILENT, Progress
from perturbjax.train.config import Training as Training
from perturbjax.vpretrain.config import Adapt as Adapt
from perturbjax.vpretrain.config import Config as Config
from perturbjax.vpretrain.config import Data as Data
from perturbjax.vpretrain.config import Steer as Steer

if TYPE_CHECKING:
    from perturbjax.vpretrain.results import Results


def run(config: Config, progress: Progress = SILENT) -> "Results":
    """Trains a model further on targets that a designer chooses, and its controls; measures all on test rows; writes the run directory.

    Everything is validated before the run directory is made, and no arm that is done is done again (``Run(resume=True)``).

    Args:
        config: the settings.
        progress: told what goes on; ``runs.console.Console()`` prints it.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.

    >>> from perturbjax import vpretrain
    >>> config = vpretrain.Config(data=vpretrain.Data("texts.jsonl", ("questions.jsonl",)))
    >>> results = vpretrain.run(config)  # doctest: +SKIP
    """
    # The stages need Flax, optax and Orbax, which reading settings does without.
    from perturbjax.vpretrain.stages import run as run_stages

    return run_stages(config, progress)
