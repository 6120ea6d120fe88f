"""Noise on a decoder's parameters, and the groups of them that it can be confined to."""

from __future__ import annotations

from perturbjax.models.config import STACKED
from perturbjax.noise import Noise, Rule
from perturbjax.noise.spec import Scale

_OTHER_THAN_NORMS = Rule(r"^(?!.*norm)", None)
_NORMS = Rule(r"norm", None)  # a norm inside an attention or MLP block is a norm
GROUPS: dict[str, tuple[Rule, ...]] = {
    "all": (),
    "embedding": (Rule(r"^(?!(embed|head)/)", None),),
    "attention": (_NORMS, Rule(r"^(?!.*/attention/)", None)),
    "mlp": (_NORMS, Rule(r"^(?!.*/mlp/)", None)),
    "norms": (_OTHER_THAN_NORMS,),
}
"""Name -> rules over the paths of ``models.config.param_shapes`` that exclude all other parameters."""


def decoder_noise(
    distribution: str = "gaussian", rank: int | None = None, scale: Scale = "absolute", rules: tuple[Rule, ...] = ()
) -> Noise:
    """``Noise`` that knows which leaves of a decoder hold one array for each layer; arguments as there.

    Raises:
        ValueError: as ``Noise`` does.

    >>> noise = decoder_noise(scale="rms", rules=GROUPS["mlp"])
    >>> [path for path in ("embed/embedding", "layers/mlp/up/kernel", "layers/mlp_norm/scale") if noise.rule_of(path) is None]
    ['layers/mlp/up/kernel']
    """
    return Noise(distribution, rank, scale, rules, stacked=None if rank is None else STACKED)
