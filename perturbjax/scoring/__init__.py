"""Scores candidates of any JAX function, one compiled chunk at a time on a mesh."""

from perturbjax.scoring.scorer import ChunkProgram as ChunkProgram
from perturbjax.scoring.scorer import score_population as score_population
