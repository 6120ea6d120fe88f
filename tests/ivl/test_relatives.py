"""Proxy-tuning and contrastive decoding from whole models, and what is refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.value_cases import base, decoder_logits, live_value, log_softmax

from perturbjax import ivl
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.models.attention import causal_mask

TOKENS = np.random.default_rng(5).integers(0, 384, (2, 9)).astype(np.int32)


def moved(seed):
    """The base with other weights, and so its tokens."""
    rng = np.random.default_rng(seed)
    return replace(base(), params=jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), base().params))


@partial(jax.jit, static_argnums=0)
def logits(config, params):
    positions = np.broadcast_to(np.arange(9)[None], (2, 9))
    model = config.build(params)
    return model.logits(model(TOKENS, positions, causal_mask(jnp.ones((2, 9), bool)))[0])


def test_whole_models_are_added_up_as_the_papers_say():
    one, other = moved(1), moved(2)
    z_base, z_one, z_other = (decoder_logits(base().config, model.params, TOKENS) for model in (base(), one, other))
    proxy, contrast = ivl.proxy_tune(base(), one, other, alpha=0.7), ivl.contrast(base(), one, alpha=0.5, cutoff=1e-30)
    np.testing.assert_allclose(logits(proxy.config, proxy.params), z_base + 0.7 * (z_one - z_other), rtol=1e-4, atol=3e-4)
    wanted = log_softmax(log_softmax(z_base) - 0.5 * log_softmax(z_one))
    np.testing.assert_allclose(log_softmax(logits(contrast.config, contrast.params)), wanted, rtol=1e-4, atol=3e-4)
    assert proxy.tokenizer is base().tokenizer and "proxy-tuned" in proxy.name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ivl.proxy_tune(base(), base("tiny_qwen2"), base()), "tuned tiny_qwen2: its vocabulary is not that of tiny_llama_tied"),
        (lambda: ivl.contrast(base(), base("tiny_qwen2")), "amateur tiny_qwen2: its vocabulary is not that of tiny_llama_tied"),
        (lambda: ivl.contrast(base(), base(), cutoff=0.0), "cutoff 0.0: a fraction above 0"),
        (lambda: ivl.proxy_tune(base(), base(), base(), alpha=float("nan")), "alpha nan: a finite number"),
        (lambda: ivl.combine(base(), *live_value(base()), gate=float("nan")), "gate nan: an entropy"),
        (
            lambda: CombinedConfig("contrastive", base().config, (replace(base().config, vocab_size=400),)),
            "amateur: it and the base have 400 and 384 rows",
        ),
    ],
)
def test_what_cannot_be_added_up_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
