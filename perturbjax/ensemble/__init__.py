"""The models that vote, and how they vote."""

from perturbjax.ensemble.ensemble import Ensemble as Ensemble
from perturbjax.ensemble.ensemble import merge as merge
from perturbjax.ensemble.voting import tally as tally
from perturbjax.ensemble.voting import vote as vote
from perturbjax.ensemble.voting import vote_winners as vote_winners
