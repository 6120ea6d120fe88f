"""One gradient loop for all chapters: demonstrations, packed rows, a step on a mesh, and a loop that commits what it has done."""

from perturbjax.train.config import Training as Training
from perturbjax.train.loop import Fitted as Fitted
from perturbjax.train.loop import Problem as Problem
from perturbjax.train.loop import fit as fit
