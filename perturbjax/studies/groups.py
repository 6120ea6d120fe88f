"""Groups of a decoder's parameters that noise can be confined to."""

from __future__ import annotations

from perturbjax.errors import InputError
from perturbjax.models.config import STACKED
from perturbjax.noise import Noise, Rule
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale

# A norm inside an attention or MLP block is a norm.
_NORMS = r"norm"
GROUPS = {
    "all": (),
    "embedding": (r"^(embed|head)/",),
    "attention": (_NORMS, r"/attention/"),
    "mlp": (_NORMS, r"/mlp/"),
    "norms": (_NORMS,),
}
"""Name -> patterns over the paths of ``models.config.param_shapes``: what matches the last one moves, unless it matches one before it."""


def noise_of(group: str, noise: DistributionName, rank: int | None, scale: Scale) -> Noise:
    """The noise that moves one group alone.

    >>> [str(rule) for rule in noise_of("mlp", "gaussian", None, "rms").rules]
    ['norm=exclude', '/mlp/=rms', '.=exclude']
    """
    stacked = None if rank is None else STACKED
    if not (patterns := GROUPS[group]):
        return Noise(noise, rank, scale, stacked=stacked)
    *left_out, moves = patterns
    rules = (*(Rule(pattern, None) for pattern in left_out), Rule(moves, scale), Rule(".", None))
    return Noise(noise, rank, scale, rules, stacked)


def check_groups(groups: tuple[str, ...]) -> None:
    """Raise ``InputError`` unless these are names of groups, each once."""
    if not groups or len(set(groups)) < len(groups) or not set(groups) <= set(GROUPS):
        raise InputError(f"`groups` {','.join(groups)}: some of {','.join(GROUPS)} are required, each once")


def check_group(group: str) -> None:
    """Raise ``InputError`` unless this is the name of a group."""
    if group not in GROUPS:
        raise InputError(f"`group` {group}: one of {', '.join(GROUPS)} is required")
