"""What a candidate is: values, where they lie, what moves and by how much, and the dense oracle."""

from perturbjax.noise.block import Block as Block
from perturbjax.noise.block import Slice as Slice
from perturbjax.noise.dense import perturb as perturb
from perturbjax.noise.dense import perturb_block as perturb_block
from perturbjax.noise.distributions import DISTRIBUTIONS as DISTRIBUTIONS
from perturbjax.noise.population import Candidate as Candidate
from perturbjax.noise.population import Population as Population
from perturbjax.noise.population import Subset as Subset
from perturbjax.noise.spec import Noise as Noise
from perturbjax.noise.spec import Rule as Rule
from perturbjax.noise.spec import coverage as coverage
from perturbjax.noise.spec import scales as scales
