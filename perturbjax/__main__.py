"""``python -m perturbjax``."""

import sys

from perturbjax.cli import main

sys.exit(main())
