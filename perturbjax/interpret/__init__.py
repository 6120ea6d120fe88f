"""Any JAX function with its parameters perturbed at the point of use: ``perturbed(fn, noise)(candidate, params, x)``."""

from perturbjax.interpret.array import LazyArray as LazyArray
from perturbjax.interpret.array import lazy as lazy
from perturbjax.interpret.lazily import lazily as lazily
from perturbjax.interpret.lazily import perturbed as perturbed
from perturbjax.interpret.usage import Usage as Usage
from perturbjax.interpret.usage import Use as Use
