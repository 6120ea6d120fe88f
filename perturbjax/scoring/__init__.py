"""Scores candidates of any JAX function, one compiled chunk at a time on a mesh."""

from perturbjax.scoring.ask_tell import AskTell as AskTell
from perturbjax.scoring.program import ChunkProgram as ChunkProgram
from perturbjax.scoring.scorer import Scorer as Scorer
from perturbjax.scoring.scorer import score_population as score_population
from perturbjax.scoring.select import top_k as top_k
