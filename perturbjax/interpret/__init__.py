"""Any JAX function with its parameters perturbed at the point of use: ``lazily(fn)(lazy(params, candidate, noise), x)``."""

from perturbjax.interpret.array import LazyArray as LazyArray
from perturbjax.interpret.array import lazy as lazy
from perturbjax.interpret.lazily import lazily as lazily
from perturbjax.interpret.report import Report as Report
from perturbjax.interpret.report import Use as Use
