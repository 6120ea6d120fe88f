"""Any JAX function with its parameters perturbed at the point of use: ``lazily(fn)(lazy(params, candidate, noise), x)``."""

from perturbjax.lazy.array import LazyArray as LazyArray
from perturbjax.lazy.array import lazy as lazy
from perturbjax.lazy.lazily import lazily as lazily
from perturbjax.lazy.report import Report as Report
from perturbjax.lazy.report import Use as Use
