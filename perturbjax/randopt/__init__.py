"""RandOpt (Gan and Isola, arXiv 2603.12228): search, racing, ensemble, vote, controls.

``run(Config(...))`` does from Python what ``perturbjax randopt`` does.
"""

from perturbjax.randopt.config import Config as Config
from perturbjax.randopt.config import Data as Data
from perturbjax.randopt.config import Search as Search
from perturbjax.randopt.run import run as run
from perturbjax.runs.config import Base as Base
from perturbjax.runs.config import Machine as Machine
from perturbjax.runs.config import Run as Run
