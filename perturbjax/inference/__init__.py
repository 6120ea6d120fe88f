"""A language model on a task on a mesh: packing, choice scoring, generation, grading."""

from perturbjax.inference.engine import Engine as Engine
from perturbjax.inference.outputs import EncodedBatch as EncodedBatch
from perturbjax.inference.outputs import Outputs as Outputs
