"""Ensemble and merge against dense perturbation, and ensemble.json against every way to spoil it; and votes against a naive count."""

import itertools
import json
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbjax.errors import InputError
from perturbjax.noise import Noise, Population, Rule, perturb
from perturbjax.randopt.ensemble import Ensemble, _apply, _merge, merge
from perturbjax.randopt.voting import MAJORITY, VOTE_RULES, VoteRule, Voting, tally, vote, vote_winners
from perturbjax.tree import fingerprint

NOISES = [
    Noise(),
    Noise(distribution="rademacher", scale="rms", rules=(Rule("bias", None), Rule("head", "modular"))),
    Noise(rank=2, scale="modular"),
]


def make_params(dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        "body": {"kernel": jnp.asarray(rng.standard_normal((8, 16)), dtype), "bias": jnp.asarray(rng.standard_normal(16), dtype)},
        "head": jnp.asarray(rng.standard_normal((16, 4)), dtype),
        "steps": jnp.arange(3),
    }


def forward(params, x):
    return jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"][None]) @ params["head"]


dense = jax.jit(perturb, static_argnames="noise")

X = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
POPULATION = Population(7, 12, (0.01, 0.1, 0.3))


@pytest.mark.parametrize("noise", NOISES)
def test_apply_equals_a_loop_over_dense_members(noise):
    params = make_params()
    members = Ensemble(POPULATION, [4, 0, 11], noise, params)
    outputs = members.apply(forward, params, X)
    assert outputs.shape == (3, 5, 4)
    for k, index in enumerate([4, 0, 11]):
        np.testing.assert_allclose(outputs[k], forward(dense(params, POPULATION[index], noise=noise), X), rtol=2e-5, atol=2e-6)
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-3


def test_typed_keys_among_the_leaves_stay_as_they_are():
    """As in any NNX state of a module with Dropout."""
    params = make_params() | {"rngs": jax.random.key(3)}
    members = Ensemble(POPULATION, [4, 0], Noise(), params)
    plain = Ensemble(POPULATION, [4, 0], Noise(), make_params()).apply(forward, make_params(), X)
    np.testing.assert_array_equal(members.apply(forward, params, X), plain)
    merged = merge(params, members.candidates, Noise())
    assert merged["rngs"] == params["rngs"]
    np.testing.assert_array_equal(merged["head"], merge(make_params(), members.candidates, Noise())["head"])
    other = params | {"rngs": jax.random.key(4)}
    with pytest.raises(InputError, match="fingerprint"):
        members.apply(forward, other, X)


def test_apply_compiles_once_for_one_function():
    params = make_params()
    traces = []

    def counted(theta, x):
        traces.append(1)
        return forward(theta, x)

    members = Ensemble(POPULATION, [1, 2], Noise(), params)
    first = members.apply(counted, params, X)
    count = len(traces)
    second = Ensemble(POPULATION, [3, 2], Noise(), params).apply(counted, params, X)
    assert len(traces) == count
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("what", ["apply", "merge"])
def test_memory_does_not_grow_with_members(what):
    params = {"w": jnp.ones((256, 256))}
    x = jnp.ones((4, 256))

    def temporaries(count):
        candidates = Population(0, count, (0.1,))[:]
        if what == "apply":
            lowered = _apply.lower(_matmul, Noise(), params, candidates, x)
        else:
            lowered = _merge.lower(Noise(), params, candidates, np.ones(count, np.float32))
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(64) <= temporaries(2) + 64 * 1024  # one more member would be 256 KiB


def _matmul(params, x):
    return x @ params["w"]


def test_other_base_is_refused_with_both_fingerprints():
    params = make_params()
    members = Ensemble(POPULATION, [0], Noise(), params)
    other = {**params, "steps": params["steps"] + 1}
    with pytest.raises(InputError) as error:
        members.apply(forward, other, X)
    assert fingerprint(params) in str(error.value) and fingerprint(other) in str(error.value)
    assert members.apply(forward, other, X, check=False).shape == (1, 5, 4)


def test_apply_inside_jit_says_what_to_do():
    params = make_params()
    members = Ensemble(POPULATION, [0], Noise(), params)
    with pytest.raises(InputError, match="check=False"):
        jax.jit(lambda p: members.apply(forward, p, X))(params)
    inside = jax.jit(lambda p: members.apply(forward, p, X, check=False))(params)
    np.testing.assert_allclose(inside, members.apply(forward, params, X), rtol=1e-5, atol=1e-6)


def test_members_are_the_candidates_of_their_indices():
    members = Ensemble(POPULATION, [7, 5], Noise(), make_params())
    assert members.members.tolist() == [7, 5]
    assert members.candidates.index.tolist() == [7, 5]
    np.testing.assert_array_equal(members.candidates.key_data[0], POPULATION[7].key_data)


@pytest.mark.parametrize(
    ("indices", "scores", "match"),
    [
        ([], None, "at least one"),
        ([0.5], None, "at least one candidate index"),
        ([1, 1], None, "occurs twice"),
        ([12], None, "outside"),
        ([-1], None, "outside"),
        ([0, 1], [0.5], "one score per member"),
        ([0], [float("nan")], "finite"),
    ],
)
def test_bad_members_are_refused(indices, scores, match):
    with pytest.raises(InputError, match=match):
        Ensemble(POPULATION, np.array(indices), Noise(), "sha256:" + "0" * 64, scores)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    "population",
    [POPULATION, Population(3, 10, (0.2, 0.05), antithetic=True), Population(2, 4, (0.3,))],
    ids=["plain", "pairs", "one sigma"],
)
def test_round_trip_rebuilds_bit_equal_members(tmp_path, noise, population):
    params = make_params()
    saved = Ensemble(population, [3, 0, 2], noise, params, [0.75, 0.7, 1 / 3])
    saved.save(tmp_path / "ensemble.json")
    loaded = Ensemble.load(tmp_path / "ensemble.json")
    assert (loaded.population, loaded.noise, loaded.fingerprint) == (saved.population, saved.noise, saved.fingerprint)
    np.testing.assert_array_equal(loaded.scores, saved.scores)
    for mine, theirs in zip(jax.tree.leaves(loaded.candidates), jax.tree.leaves(saved.candidates), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "ensemble.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "ensemble.json"]


def test_file_holds_no_weights_and_says_sigmas_as_they_were_given(tmp_path):
    Ensemble(Population(0, 9, (5e-4, 1e-3, 2e-3)), [4, 8], Noise(), make_params()).save(tmp_path / "e.json")
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["members"] == [{"index": 4, "score": None, "sigma": 0.001}, {"index": 8, "score": None, "sigma": 0.002}]
    assert (tmp_path / "e.json").stat().st_size < 1500
    assert Ensemble.load(tmp_path / "e.json").scores is None


def spoil(content, path, value):
    *head, last = path
    for key in head:
        content = content[key]
    if value is DELETE:
        del content[last]
    else:
        content[last] = value


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["format"], "other", "format"),
        (["version"], 1, "version 1: this release reads 2"),
        (["version"], 3, "version 3: this release reads 2"),
        (["version"], True, "version true: this release reads 2"),
        (["base_fingerprint"], "abc", "64 hexadecimal"),
        (["base_fingerprint"], DELETE, "base_fingerprint is missing"),
        (["surprise"], 1, "surprise is an unknown field"),
        (["noise"], [], "noise"),
        (["noise", "distribution"], "cauchy", "distribution 'cauchy'"),
        (["noise", "rank"], 1.5, "noise.rank 1.5"),
        (["noise", "rank"], 0, "rank 0"),
        (["noise", "rules"], [{"pattern": "(", "scale": None}], "regular expression"),
        (["noise", "rules"], [{"pattern": "x"}], r"rules\[0\].scale is missing"),
        (["population", "seed"], DELETE, "population.seed is missing"),
        (["population", "seed"], -1, "seed"),
        (["population", "size"], "12", "population.size"),
        (["population", "size"], 0, r"members\[0\].index 4"),
        (["population", "size"], 10**30, "population"),
        (["population", "sigmas"], [], "sigma"),
        (["population", "sigmas"], [0.01, -0.1], "population.sigmas"),
        (["population", "sigmas"], [1e300], "population.sigmas"),
        (["population", "sigmas"], [float("nan")], "not JSON .*(nan|compliant)"),
        (["population", "antithetic"], 0, "antithetic 0: true or false"),
        (["members"], [], "at least one member"),
        (["members"], {"index": 1}, "members"),
        (["members", 0], 5, r"members\[0\] 5: an object"),
        (["members", 0, "index"], 12, r"members\[0\].index 12"),
        (["members", 0, "index"], -1, r"members\[0\].index -1"),
        (["members", 1, "index"], 4, "once"),
        (["members", 0, "sigma"], 0.01, r"members\[0\].sigma 0.01: candidate 4 of this population has sigma 0.1"),
        (["members", 0, "sigma"], 1e300, "sigma"),
        (["members", 0, "score"], "high", r"members\[0\].score"),
        (["members", 0, "score"], None, "every member has a score or none"),
        (["members", 0, "score"], 10**400, "score"),
    ],
)
def test_spoiled_file_is_refused_in_one_line(tmp_path, path, value, match):
    file = tmp_path / "ensemble.json"
    Ensemble(POPULATION, [4, 1], Noise(), make_params(), [0.5, 0.25]).save(file)
    content = json.loads(file.read_text())
    spoil(content, path, value)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=match) as error:
        Ensemble.load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'"' + b"9" * 50])
def test_files_that_are_no_json_object_are_refused(tmp_path, body):
    file = tmp_path / "ensemble.json"
    file.write_bytes(body)
    with pytest.raises(InputError, match=r"ensemble\.json: ") as error:
        Ensemble.load(file)
    assert "\n" not in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    file = tmp_path / "ensemble.json"
    Ensemble(POPULATION, [4, 1], Noise(), make_params(), [0.5, 0.25]).save(file)
    whole = file.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError):
            Ensemble.load(file)


def test_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Ensemble.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        Ensemble.load(tmp_path)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.0]])
def test_merge_is_the_weighted_mean_of_dense_members(noise, dtype, weights):
    params = make_params(dtype)
    candidates = POPULATION[[2, 5, 9]]
    merged = merge(params, candidates, noise, weights)
    shares = np.full(3, 1 / 3) if weights is None else np.array(weights) / 4
    thetas = [dense(params, POPULATION[i], noise=noise) for i in (2, 5, 9)]
    tolerance = {"float32": 2e-6, "bfloat16": 2**-8}[dtype]
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
        members = [dict(jax.tree_util.tree_leaves_with_path(theta))[path] for theta in thetas]
        mean = sum(s * np.asarray(m, np.float64) for s, m in zip(shares, members, strict=True))
        assert leaf.dtype == members[0].dtype
        np.testing.assert_allclose(np.asarray(leaf, np.float64), mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(merged["steps"], params["steps"])


def test_merge_of_an_antithetic_pair_is_the_base():
    params = make_params()
    merged = merge(params, Population(0, 2, (0.1,), antithetic=True)[:], Noise())
    for mine, base in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine, base, atol=3e-7)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_merge_refuses_bad_weights(weights):
    with pytest.raises(InputError, match="weights"):
        merge(make_params(), POPULATION[[0, 1]], Noise(), weights)


answer_lists = st.lists(st.sampled_from(["a", "b", "c", "A", None]), max_size=9)


def naive_vote(answers, keys):
    present = [k for k in keys if k is not None]
    if not present:
        return None
    most = max(Counter(present).values())
    return next(a for a, k in zip(answers, keys, strict=True) if k is not None and present.count(k) == most)


@settings(deadline=None)
@given(answer_lists)
def test_vote_equals_naive_count(answers):
    assert vote(answers) == naive_vote(answers, answers)


@settings(deadline=None)
@given(answer_lists)
def test_vote_with_keys_equals_naive_count(answers):
    keys = [None if a is None else a.lower() for a in answers]
    assert vote(answers, keys) == naive_vote(answers, keys)


def test_every_vote_of_up_to_four_members():
    for size in range(1, 5):
        for answers in itertools.product(["x", "y", None], repeat=size):
            assert vote(answers) == naive_vote(answers, answers), answers


def test_tie_goes_to_the_answer_with_the_best_ranked_supporter():
    assert vote(["b", "a", "a", "b", "c"]) == "b"
    assert vote([None, "c", "a", "b"]) == "c"
    assert vote(["a", "b", "b"]) == "b"  # rank decides ties only


def test_abstentions_count_for_nobody():
    assert vote([None, None, None, "a"]) == "a"
    assert vote([None, None]) is None
    assert vote([]) is None


def test_equal_keys_count_as_one_and_the_best_supporter_names_the_answer():
    assert vote(["7", "1,000", "1000.0"], ["7", "1000", "1000"]) == "1,000"


def test_tally_orders_by_votes_then_by_rank():
    assert list(tally(["b", "a", None, "A", "c"], ["b", "a", None, "a", "c"]).items()) == [("a", 2), ("b", 1), ("c", 1)]


@settings(deadline=None)
@given(st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(st.sampled_from(["a", "b", None]), min_size=k, max_size=k), max_size=5)))
def test_winners_of_every_prefix_equal_the_vote_of_the_prefix(answers):
    winners = vote_winners(answers)
    assert winners.shape == (len(answers), len(answers[0]) if answers else 0)
    for b, row in enumerate(answers):
        for k in range(1, len(row) + 1):
            winner = winners[b, k - 1]
            assert (row[winner] if winner >= 0 else None) == naive_vote(row[:k], row[:k])
            # The winner is the best-ranked supporter.
            assert winner == -1 or row.index(row[winner]) == winner


def test_fifty_members_and_256_examples_are_quick():
    answers = np.random.default_rng(0).choice(list("abcd"), (256, 50)).tolist()
    started = time.process_time()
    vote_winners(answers)
    assert time.process_time() - started < 1.0  # about 0.01 s; recounting every prefix takes 25 times as long


def test_a_rule_is_a_line_of_the_table_and_weighs_the_votes(monkeypatch):
    monkeypatch.setitem(VOTE_RULES, "by score", VoteRule("", lambda scores: scores))
    by_member = [["a", "a"], ["b", None], ["b", "b"]]  # of 3 members, to 2 examples
    assert Voting("by score", np.array([0.9, 0.4, 0.4])).winners(by_member, by_member).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert Voting("by score", np.array([0.5, 0.4, 0.4])).winners(by_member, by_member).tolist() == [[0, 0, 1], [0, 0, 0]]
    assert Voting(MAJORITY).winners(by_member, by_member).tolist() == [[0, 0, 1], [0, 0, 0]]
    for scores in (None, np.array([0.5, -0.1, 0.4])):
        with pytest.raises(InputError, match="vote rule by score has no weights"):
            Voting("by score", scores).winners(by_member, by_member)


def test_lengths_must_agree():
    with pytest.raises(InputError, match="keys: 1 keys for 2 answers"):
        vote(["a", "b"], ["a"])
    with pytest.raises(InputError, match="1 members for example 1, 2 for example 0"):
        vote_winners([["a", "b"], ["a"]])
    with pytest.raises(InputError, match="keys: 1 examples for 2"):
        vote_winners([["a"], ["b"]], [["a"]])


def test_arrays_vote_column_by_column_as_texts_do():
    answers = np.random.default_rng(0).integers(0, 4, (7, 60)).astype(np.int32)
    expected = [vote([str(answer) for answer in column]) for column in answers.T]
    voted = vote(answers)
    assert [str(int(winner)) for winner in voted] == expected and voted.dtype == np.int32
    assert int(vote(answers[:, 0])) == int(voted[0])
    with pytest.raises(ValueError, match=r"\(K,\) or \(K, B\)"):
        vote(np.zeros((2, 3, 4)))
