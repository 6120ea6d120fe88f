"""Inverse value learning (Lu et al., arXiv 2410.21027): a small network learns what demonstrations do to logits; other models use it.

``run(Config(...))`` does from Python what ``perturbjax ivl`` does; ``combine`` adds a value network, as ``load_value`` reads it from
a run's ``value/``, to any model. ``proxy_tune`` and ``contrast`` add up whole models in the same way.
"""

from typing import TYPE_CHECKING

from perturbjax.ivl.artifacts import load_value as load_value
from perturbjax.ivl.combined import combine as combine
from perturbjax.ivl.config import Bases as Bases
from perturbjax.ivl.config import Config as Config
from perturbjax.ivl.config import Data as Data
from perturbjax.ivl.config import Value as Value
from perturbjax.ivl.relatives import contrast as contrast
from perturbjax.ivl.relatives import proxy_tune as proxy_tune
from perturbjax.runs.config import Machine as Machine
from perturbjax.runs.config import Run as Run
from perturbjax.runs.console import SILENT, Progress
from perturbjax.train.config import Training as Training

if TYPE_CHECKING:
    from perturbjax.ivl.results import Results


def run(config: Config, progress: Progress = SILENT) -> "Results":
    """Trains a value network beside its base, measures both on held-out questions, and writes the run directory.

    Everything is validated before the run directory is made, and no stage that is done is done again (``Run(resume=True)``).

    Args:
        config: the settings.
        progress: told what goes on; ``runs.console.Console()`` prints it.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.

    >>> from perturbjax import ivl
    >>> config = ivl.Config(value=ivl.Value(layers=4), training=ivl.Training(epochs=1))
    >>> results = ivl.run(config)  # doctest: +SKIP
    """
    # The stages need Flax, optax and Orbax, which reading settings does without.
    from perturbjax.ivl.stages import run as run_stages

    return run_stages(config, progress)
