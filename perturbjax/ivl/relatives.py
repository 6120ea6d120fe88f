"""Relatives of a value network from the literature: whole models whose logits count in those of a base, token by token.

Each is a ``Model`` like that of ``combined.combine``. The parts speak one vocabulary: no map is between them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perturbjax.ivl.combined import NAMES, CombinedConfig, Rule
from perturbjax.ivl.tokens import token_table

if TYPE_CHECKING:
    from perturbjax.pretrained import Model


def proxy_tune(base: Model, tuned: Model, untuned: Model, alpha: float = 1.0, gate: float | None = None) -> Model:
    """Proxy-tuning (arXiv 2401.08565): a base with what training did to a small model's logits, z_B + alpha (z_A+ - z_A-).

    Emulated fine-tuning (arXiv 2310.12962) too, which adds log-probabilities: they differ by a constant at each position, which no softmax
    sees.

    Args:
        base: B, never changed.
        tuned: A+, the small model after its training; ``untuned``: A-, the same before it.
        alpha: weight of the difference.
        gate: entropy of B's distribution in nats above which it counts; None: always.

    Raises:
        ValueError: one of them has another vocabulary than the base; or a weight that is no number.
    """
    return _joined("proxy", base, (tuned, untuned), f"{base.name}, proxy-tuned", alpha=alpha, gate=gate)


def contrast(base: Model, amateur: Model, alpha: float = 1.0, cutoff: float = 0.1, gate: float | None = None) -> Model:
    """Contrastive decoding (arXiv 2210.15097): log p_B - alpha log p_A of the tokens that are likely to the base.

    Args:
        base: B, the expert, never changed.
        amateur: A, a weaker model, whose preferences are taken away.
        alpha: weight of the amateur.
        cutoff: how likely a token must be to the base, as a fraction of its likeliest: above 0, at most 1.
        gate: entropy of B's distribution in nats above which the amateur counts; None: always.

    Raises:
        ValueError: the amateur has another vocabulary than the base; or a weight that is no number, or another cutoff.
    """
    return _joined("contrastive", base, (amateur,), f"{base.name} against {amateur.name}", alpha=alpha, cutoff=cutoff, gate=gate)


def _joined(rule: Rule, base: Model, others: tuple[Model, ...], name: str, **settings: Any) -> Model:
    names, spoken = NAMES[rule][1:], token_table(base.tokenizer).vocabulary
    for part, model in zip(names, others, strict=True):
        if token_table(model.tokenizer).vocabulary != spoken:
            raise ValueError(f"{part} {model.name}: its vocabulary is not that of {base.name}, and logits are added token by token")
    config: Any = CombinedConfig(rule, base.config, tuple(model.config for model in others), **settings)
    params = {"base": base.params} | {part: model.params for part, model in zip(names, others, strict=True)}
    return replace(base, name=name, config=config, params=params)
