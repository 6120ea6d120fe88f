"""Feedback that steers the rows of its own domain: scores, updates of the designer, and the rows of a corpus that has domains."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import vpretrain_cases as cases

from perturbjax.train.config import Training
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.step import TrainState
from perturbjax.vpretrain.corpus import load_corpus
from perturbjax.vpretrain.domains import corpus_domains, rows_by_domain
from perturbjax.vpretrain.steering import Steering, designer_auxiliary

PARAMS = cases.params(cases.SMALL.config)
DOMAINS = {"one": "left", "two": "right"}
TASK = replace(cases.task(sets=("one", "two"), learner=cases.SMALL), domains=DOMAINS)
BATCH = cases.batch(cases.rows(), count=4) | {"domain": jnp.asarray([0, 1, 1, 0], jnp.int32)}


def test_a_row_is_scored_in_the_direction_of_its_own_domain():
    """Opposite directions: the rows of one domain have the scores that they have alone, the others the negative ones."""
    rng = np.random.default_rng(3)
    one = {path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in TASK.subset.take(PARAMS).items()}
    other = jax.tree.map(jnp.negative, one)
    alone, matched = jax.jit(lambda: [TASK.prepare(PARAMS, None, direction, BATCH) for direction in (one, (one, other))])()
    signs = np.asarray([1.0, -1.0, -1.0, 1.0])[:, None, None]
    np.testing.assert_allclose(matched["scores"], signs * alone["scores"], rtol=1e-5, atol=1e-5)  # scores reach 11
    assert np.abs(alone["scores"]).max() > 0.1
    for name in ("ids", "log_probs"):
        np.testing.assert_array_equal(matched[name], alone[name])


def test_the_value_is_the_sum_over_domains_each_as_if_it_were_alone():
    """Shares of 1/3 and 2/3: the domains count 2/3 and 4/3 as much as where they weigh the same."""
    optimizer, phi = make_optimizer(Training(steps=9), 9), cases.designer_params()
    state, settings = TrainState(PARAMS, optimizer.init(PARAMS)), Steering(probe=False)
    feedback = {name: jax.tree.map(lambda a: a[None], cases.batch(cases.rows(seed=seed))) for seed, name in enumerate(DOMAINS, start=1)}
    matched = TASK.by_domain()

    def updated(task, matched, batch):
        auxiliary = designer_auxiliary(task, settings, phi, lambda step: {}, lambda step: 1e-3, matched)
        given = jax.tree.map(lambda array: array[None], batch)
        return auxiliary.update(auxiliary.state, state, None, given, feedback, jnp.int32(3))[1]

    def rows_of(number):
        return BATCH | {"weights": BATCH["weights"] * (BATCH["domain"] == number)[:, None].astype(jnp.float32)}

    def everything():
        return updated(TASK, matched, BATCH), [updated(each.task, (), rows_of(number)) for number, each in enumerate(matched)]

    both, alone = jax.jit(everything)()
    weights = [float(rows_of(number)["weights"].sum()) for number in (0, 1)]
    expected = [factor * weight * each["value"] for factor, weight, each in zip((2 / 3, 4 / 3), weights, alone, strict=True)]
    assert both["value"] * sum(weights) == pytest.approx(float(sum(expected)), rel=1e-4)
    assert min(map(abs, expected)) > 1e-3
    assert both["feedback_loss"] == pytest.approx(float(alone[0]["feedback_loss"] + 2 * alone[1]["feedback_loss"]) / 3, rel=1e-5)


def test_a_cosine_has_no_domains():
    with pytest.raises(ValueError, match="similarity cosine: it is of all rows together"):
        designer_auxiliary(TASK, Steering(similarity="cosine"), {}, lambda step: {}, lambda step: 1.0, TASK.by_domain())


def test_rows_are_of_one_domain_each(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"number {n}", "domain": "right" if n % 3 else "left"} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(str(path))
    domains = corpus_domains(str(path), corpus, ("left", "right"))
    assert domains == tuple(row["domain"] for row in rows)
    packed = {}

    def pack(texts, name):
        packed[name] = [each.response for each in texts]
        return cases.rows(len(texts), seed=len(texts))

    found = rows_by_domain(corpus, domains, ("left", "right"), pack)
    assert packed == {f"corpus, {name}": [row["text"] for row in rows if row["domain"] == name] for name in ("left", "right")}
    counts = [len(cases.rows(len(texts), seed=len(texts))) for texts in packed.values()]
    assert found.batch(np.arange(len(found)))["domain"].tolist() == [0] * counts[0] + [1] * counts[1]
    # Each turn of the assistant is a demonstration of the row's domain.
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant") * 2]
    path.write_text(json.dumps({"messages": turns, "domain": "left"}) + "\n")
    assert corpus_domains(str(path), load_corpus(str(path)), ("left",)) == ("left", "left")
