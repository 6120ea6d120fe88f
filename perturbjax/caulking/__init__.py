"""Caulking (Fukuchi, Hataya & Matsui, arXiv 2602.04233): how many target samples does a pretrained model save?

``run_grid`` trains a small caulk for every pretraining quality, number of samples, seed and method; ``sample_complexity`` says how many
samples an error takes. The paper's definitions and code are not public: this is a reconstruction (NOTES.md).
"""

from perturbjax.caulking.cells import Cell as Cell
from perturbjax.caulking.cells import Measured as Measured
from perturbjax.caulking.grid import run_grid as run_grid
from perturbjax.caulking.program import Fitting as Fitting
from perturbjax.caulking.program import Method as Method
