"""Likelihoods against dense log-softmaxes of the members; where lm-evaluation-harness is installed, two of its tasks on local files."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.searched import save_ensemble, searched_parts, searched_run

from perturbjax.errors import InputError
from perturbjax.models.attention import causal_mask
from perturbjax.noise import perturb
from perturbjax.pretrained.model import Model
from perturbjax.serve.likelihood import Likelihoods
from perturbjax.serve.runs import Choice, Opened, open_run

RNG = np.random.default_rng(5)
PAIRS = [(RNG.integers(5, 120, n).tolist(), RNG.integers(5, 120, m).tolist()) for n, m in ((3, 2), (9, 1), (1, 7))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    parts = searched_parts(folder, noise="rademacher")
    directory = searched_run(parts, folder / "run")
    save_ensemble(parts, directory)
    return directory.path


@pytest.fixture(scope="module")
def opened(run):
    return open_run(run, Choice(), lambda _: None)


@partial(jax.jit, static_argnums=1)
def logits_of(params, config, tokens):
    decoder = config.build(params)
    hidden, _ = decoder(tokens[None], jnp.arange(len(tokens))[None], causal_mask(jnp.ones((1, len(tokens)), bool)))
    return decoder.logits(hidden)[0]


def dense(model: Model, pairs) -> list[tuple[float, bool]]:
    """(log p, greedy) of each pair by the logits of its whole text, which is padded to one length: later tokens change nothing."""
    found = []
    for context, continuation in pairs:
        tokens = [*context, *continuation]
        z = np.asarray(logits_of(model.params, model.config, jnp.asarray(tokens + [0] * (64 - len(tokens)))), np.float64)
        asked = z[len(context) - 1 : len(tokens) - 1]
        log_probs = asked - np.logaddexp.reduce(asked, axis=-1, keepdims=True)
        found.append((sum(log_probs[i, token] for i, token in enumerate(continuation)), asked.argmax(-1).tolist() == list(continuation)))
    return found


def test_likelihoods_of_one_model_and_of_the_mixture_of_members(opened):
    ensemble, params = opened.ensemble, opened.model.params
    theta_of = jax.jit(perturb, static_argnames="noise")
    thetas = [theta_of(params, ensemble.population[int(index)], noise=ensemble.noise) for index in ensemble.members]
    members = [dataclasses.replace(opened.model, params=theta) for theta in thetas]
    context = PAIRS[0][0]
    first = int(
        logits_of(members[0].params, members[0].config, jnp.asarray(context + [0] * (64 - len(context))))[len(context) - 1].argmax()
    )
    pairs = [*PAIRS, (context, [first])]
    by_member = [dense(member, pairs) for member in members]
    found = Likelihoods(opened, rows=3, longest=24)(pairs)
    mixed = np.logaddexp.reduce([[log_prob for log_prob, _ in each] for each in by_member]) - np.log(len(members))
    np.testing.assert_allclose([log_prob for log_prob, _ in found], mixed, rtol=1e-4)
    assert [greedy for _, greedy in found] == [2 * sum(each[i][1] for each in by_member) > len(members) for i in range(len(pairs))]
    assert by_member[0][-1][1]
    one = Likelihoods(Opened(opened.model), rows=3, longest=24)
    np.testing.assert_allclose([each for each, _ in one(PAIRS)], [each for each, _ in dense(opened.model, PAIRS)], rtol=1e-4)
    long = (RNG.integers(5, 120, 40).tolist(), [7, 8])  # cut on the left to 24 tokens
    np.testing.assert_allclose(one([long])[0][0], dense(opened.model, [(long[0][-22:], [7, 8])])[0][0], rtol=1e-4)
    with pytest.raises(ValueError, match="continuation of 24 tokens"):
        one([([1], [2] * 24)])


CHOICES = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
REPLIES = """
task: local_reply
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{reply}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.mark.filterwarnings("ignore")  # the harness' own, of the packages that it imports
def test_the_harness_runs_two_tasks_of_local_files(run, opened, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from perturbjax.serve.harness import PerturbjaxLM

    arguments: dict[str, Any] = {"run": str(run), "base": True, "max_length": 48, "max_gen_toks": 6}
    model = PerturbjaxLM(**arguments, batch_size=2)
    questions = [f"is {i} an even number" for i in range(4)]
    texts = model.generate_until([SimpleNamespace(args=(question, {"until": ["\n\n"]})) for question in questions])
    rows = [
        {"question": question, "choices": [" yes", " no"], "answer": i % 2, "reply": texts[i] if i else "something else"}
        for i, question in enumerate(questions)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in (("choice", CHOICES), ("reply", REPLIES)):
        (tmp_path / f"{name}.yaml").write_text(task.format(path=tmp_path / "rows.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        model="perturbjax",
        model_args=arguments,
        tasks=["local_choice", "local_reply"],
        batch_size=2,
        task_manager=manager,
        bootstrap_iters=0,
    )["results"]
    pairs = [(model.tok_encode(question), model.tokenizer.encode(choice)) for question in questions for choice in (" yes", " no")]
    likely = np.array([each for each, _ in dense(opened.model, pairs)]).reshape(4, 2).argmax(-1)
    assert results["local_choice"]["acc,none"] == np.mean(likely == [0, 1, 0, 1])
    assert results["local_reply"]["exact_match,none"] == 0.75
    tokens = model.tokenizer.encode(questions[0] * 4)
    assert len(tokens) == 64  # so there are two windows of 47 tokens and one before them
    (rolling,) = model.loglikelihood_rolling([SimpleNamespace(args=(questions[0] * 4,))])
    windows = [([model.prefix_token_id], tokens[:47]), (tokens[16:47], tokens[47:])]
    assert rolling == pytest.approx(sum(each for each, _ in dense(opened.model, windows)), rel=1e-4)
    voted = PerturbjaxLM(str(run), max_length=48, max_gen_toks=6, batch_size=2)
    assert len(voted.generate_until([SimpleNamespace(args=("a", {"until": []}))])) == 1
    with pytest.raises(InputError, match="members of a vote answer greedily"):
        voted.generate_until([SimpleNamespace(args=("a", {"temperature": 0.5}))])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed here")
def test_without_the_harness_it_says_what_to_install():
    done = subprocess.run([sys.executable, "-m", "perturbjax.serve.harness", "run"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "perturbjax: error: lm_eval not installed; pip install 'perturbjax[lm-eval]'\n"
