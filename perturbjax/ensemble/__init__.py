"""The models that vote, and how they vote."""

from perturbjax.randopt.ensemble import Ensemble as Ensemble
from perturbjax.randopt.ensemble import merge as merge
from perturbjax.randopt.voting import tally as tally
from perturbjax.randopt.voting import vote as vote
from perturbjax.randopt.voting import vote_winners as vote_winners
