"""Other ways to spend what a search spends, on the same noise: evolution strategies, gradient screening, a gradient step; and one formula
of what each costs."""

from perturbjax.searchers.cost import Cost as Cost
from perturbjax.searchers.evolution import EvolutionStrategy as EvolutionStrategy
from perturbjax.searchers.evolution import Step as Step
from perturbjax.searchers.evolution import centred_ranks as centred_ranks
from perturbjax.searchers.evolution import displaced as displaced
from perturbjax.searchers.evolution import rebuild as rebuild
from perturbjax.searchers.evolution import widened as widened
from perturbjax.searchers.gradient_step import gradient_step as gradient_step
from perturbjax.searchers.screening import choose as choose
from perturbjax.searchers.screening import inner_products as inner_products
