"""Scores candidates: one compiled chunk at a time on a mesh, teacher-forced or generative."""

from perturbjax.inference.engine import Engine as Engine
from perturbjax.inference.outputs import Outputs as Outputs
from perturbjax.inference.outputs import Prepared as Prepared
from perturbjax.scoring.scorer import ChunkProgram as ChunkProgram
from perturbjax.scoring.scorer import score_population as score_population
