"""Studies of what RandOpt's papers claim, and of what else the same tokens could do; each a frozen ``Config`` and a typed result."""

from perturbjax.studies.calibration import Config as Config
from perturbjax.studies.calibration import calibrate as calibrate
