"""Studies of what RandOpt's papers claim, and of what else the same tokens could do; each a frozen ``Config`` and a typed result.

``calibrate(Config(...))`` chooses a sigma. Every other study is a module: ``studies.signals.run(studies.signals.Config(...))``.
"""

from perturbjax.studies import density as density
from perturbjax.studies import discordance as discordance
from perturbjax.studies import linearity as linearity
from perturbjax.studies import rivals as rivals
from perturbjax.studies import scaling as scaling
from perturbjax.studies import screening as screening
from perturbjax.studies import signals as signals
from perturbjax.studies.calibration import Config as Config
from perturbjax.studies.calibration import calibrate as calibrate
