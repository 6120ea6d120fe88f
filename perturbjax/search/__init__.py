"""The search: sample candidates, score them chunk by chunk, commit every chunk, select the best."""

from perturbjax.scoring.select import top_k as top_k
