"""Consolidations of a tiny run from settings to a saved model: every way, its controls, stopped and continued, and bad input."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from fault_runs import write_questions
from support.chapter import call, failing_commits
from support.cli_tiny import MODEL
from support.consolidated import content, contrary_run, finished_run
from support.searched import save_ensemble, searched_run
from support.toy import one_batch_size

from perturbjax import consolidate
from perturbjax.consolidate import labels, measuring
from perturbjax.consolidate.distilling import Trainer
from perturbjax.consolidate.merging import Move, Part, moved_by, uniform_weights
from perturbjax.consolidate.results import Results, read_results
from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.noise import Candidate
from perturbjax.pretrained import load_model
from perturbjax.pretrained.adapter_files import read_adapter
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import make_engine, reopen_ensemble, unused_rows
from perturbjax.runs.console import SILENT
from perturbjax.tasks.splits import same_question_key
from perturbjax.train.rows import pack_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As ``contrary_run`` says."""
    folder = tmp_path_factory.mktemp("consolidate")
    with pytest.MonkeyPatch.context() as patch:
        one_batch_size(patch)
        contrary_run(folder)
        yield folder


def config(folder: Path, out: Path, by: str, name: str = "run", **settings) -> consolidate.Config:
    return consolidate.Config(folder / name, by=by, out=out, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def merged(folder) -> Results:
    """Lengths that change answers of this model: some of them, and all."""
    return consolidate.run(config(folder, folder / "merged", "merge", lengths=(2.0, 10.0)))


def test_the_command_writes_what_python_gives_and_leaves_the_run(folder, merged, tmp_path, capsys):
    before = content(folder / "run")
    code, out, err = call(["consolidate", str(folder / "run"), "--by", "merge", "--lengths", "2,10", "--out", str(tmp_path / "m")], capsys)
    assert code == 0, err
    assert content(folder / "run") == before
    written = json.loads((tmp_path / "m" / "results.json").read_text())
    assert written["rows"] == json.loads((folder / "merged" / "results.json").read_text())["rows"]
    assert [row.name for row in merged.rows] == ["base", "vote", "uniform merge", "reward merge", "random merge", "consolidated"]
    assert merged.row("base").accuracy == merged.gate.base == 0 and merged.gate.taken and merged.saved
    assert merged.row("vote").tokens == 2 * merged.row("consolidated").tokens and merged.row("vote").models == 2
    assert [(each.arm, each.control) for each in merged.gate.tried[-2:]] == [("random merge", True)] * 2
    lines = out.splitlines()
    assert "above 0, taken" in out and str(tmp_path / "m" / "model") in out and lines[2].startswith("test ")
    assert all(row.over_vote.difference == pytest.approx(row.accuracy - merged.row("vote").accuracy) for row in merged.rows)
    [over] = merged.row("consolidated").over_controls
    assert over.difference == pytest.approx(merged.row("consolidated").accuracy - merged.row("random merge").accuracy)
    assert (
        f"Its difference to the control, {over.name}, is" in out
        and over.name == "random merge"
        and not merged.row("random merge").over_controls
    )
    for command in (["evaluate"], ["predict", "--questions", "q", "--out", str(tmp_path / "a")], ["export", "--out", str(tmp_path / "x")]):
        code, out, err = call([command[0], str(tmp_path / "m"), *command[1:]], capsys)
        assert (code, out) == (2, "") and "made by perturbjax consolidate; its model is" in err


def test_results_that_do_not_fit_together_are_refused(folder, merged, tmp_path):
    written = json.loads((folder / "merged" / "results.json").read_text())
    for change, said in (
        ({"rows": []}, "rows: base is missing"),
        ({"gate": written["gate"] | {"arm": "x"}}, "gate: arm and option are not among those"),
        ({"seconds": float("nan")}, "damaged, not JSON"),
    ):
        (tmp_path / "results.json").write_text(json.dumps(written | change))
        with pytest.raises(InputError, match=said):
            read_results(tmp_path / "results.json")


def test_the_saved_model_is_the_merge_and_answers_as_measured(folder, merged):
    parts, ensemble = reopen_ensemble(folder / "run", lambda _: None)
    saved = load_model(str(folder / "merged" / "model"), "float32")
    length = float(merged.gate.option.removeprefix("length "))
    made = {
        "uniform merge": uniform_weights(2),
        "reward merge": next(tuple(map(float, n.removeprefix("reward weights ").split(", "))) for n in merged.notes),
    }[merged.gate.arm]
    again = moved_by(parts.model.params, parts.noise, (Move((Part(ensemble.population, (5, 2), made),), length),))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), saved.params, again)
    engine = Engine(saved, parts.task, parts.noise)
    outputs = engine.run(Candidate.base(1), engine.prepare(parts.splits.test, parts.template))
    assert float(outputs.scores.mean()) == pytest.approx(merged.row("consolidated").accuracy)


def test_a_merge_that_is_worse_is_refused(folder, tmp_path):
    found = consolidate.run(config(folder, tmp_path / "m", "merge", "right", lengths=(10.0,)))
    assert found.gate.base == 1 and found.gate.gain < 0 and not found.gate.taken and not found.saved
    assert not (tmp_path / "m" / "model").exists()
    made, base = found.row("consolidated"), found.row("base")
    assert made.option == "the base" and (made.accuracy, made.difference) == (base.accuracy, 0)


def test_what_was_measured_is_not_measured_again(folder, merged, tmp_path, monkeypatch):
    shutil.copytree(folder / "merged", tmp_path / "m")
    for name in ("results.json", "measured/test-vote.json", "measured/select-reward-merge-length-2.json"):
        (tmp_path / "m" / name).unlink()
    asked, run_base = [], measuring.run_base
    monkeypatch.setattr(measuring, "run_base", lambda *a: asked.append("one") or run_base(*a))
    found = consolidate.run(config(folder, tmp_path / "m", "merge", lengths=(2.0, 10.0), resume=True))
    assert asked == ["one"] and found.rows == merged.rows and found.gate == merged.gate
    (tmp_path / "m" / "results.json").unlink()
    measured = json.loads((tmp_path / "m" / "measured" / "test-vote.json").read_text())
    for change in ({"scores": measured["scores"][1:]}, {"scores": [2.0, *measured["scores"][1:]]}):
        (tmp_path / "m" / "measured" / "test-vote.json").write_text(json.dumps(measured | change))
        with pytest.raises(InputError, match=r"test-vote\.json: is not of these questions or candidates; delete it"):
            consolidate.run(config(folder, tmp_path / "m", "merge", lengths=(2.0, 10.0), resume=True))


def test_labels_are_the_votes_of_a_loop_and_no_split_has_their_questions(folder, tmp_path):
    parts, ensemble = reopen_ensemble(folder / "run", lambda _: None)
    asked = labels.rows_to_label(config(folder, tmp_path, "distill"), parts)
    splits = (*parts.splits.search, *parts.splits.select, *parts.splits.test)
    assert len(asked) == 11 and not {same_question_key(e) for e in asked} & {same_question_key(e) for e in splits}
    engine = make_engine(parts)
    asker = measuring.Asker(parts, ensemble, engine, tmp_path / "measured", SILENT)
    found = labels.label(asker, asked)
    single = [engine.run(ensemble.population[[i]], engine.prepare(asked, parts.template)).answers[0] for i in ensemble.members]
    base = engine.run(Candidate.base(1), engine.prepare(asked, parts.template)).answers[0]
    for b, each in enumerate(found.rows):
        votes = Counter(answers[b] for answers in single)
        assert (each.id, each.base) == (asked[b].id, base[b]) and each.voted == votes.most_common(1)[0][0]
        assert each.shares == {answer: n / 2 for answer, n in votes.items()}
        assert each.hard == (len(votes) > 1 or base[b] not in votes)
    taught = labels.lessons(asker, asked, found.rows, shares=True)
    rows = pack_rows(taught.vote, 512, per_demonstration=True)
    assert rows.arrays["weights"].sum() == pytest.approx(len(asked)) and len(taught.base) == len(taught.gold) == len(asked)
    tokenizer = parts.model.tokenizer
    for demonstration, row in zip(taught.gold, asked, strict=True):
        choice = parts.task.prompt(row, parts.template).choices[row.choices.index(row.answer)]
        assert demonstration.response == tuple(tokenizer.encode(choice))
    settings = config(folder, tmp_path, "distill", train="full", epochs=3.0, learning_rate=0.01)
    (option,) = Trainer(asker, settings, parts.identity, lambda _: None, rows=1).arm("gold labels", taught.gold, tokens=7).options
    assert option.write is None and option.tokens > 7
    tuned = asker.one("all weights", "test", option.make)
    assert tuned.accuracy > asker.base("test").accuracy == 0
    jax.tree.map(lambda leaf, base: leaf.shape == base.shape or pytest.fail("another shape"), option.make(), parts.model.params)


def test_distillation_trains_three_models_of_equal_steps_and_goes_on_after_a_stop(folder, tmp_path, monkeypatch):
    """With a vote that is right, which is what it takes for the gate to open."""
    label, out, settings = labels._label, tmp_path / "out", {"rows": "all", "rank": 2, "epochs": 8.0, "learning_rate": 0.05}

    def right(asker, rows):
        said = label(asker, rows)
        return dataclasses.replace(said, rows=tuple(dataclasses.replace(each, voted="yes", shares={"yes": 1.0}) for each in said.rows))

    monkeypatch.setattr(labels, "_label", right)
    with failing_commits(2), pytest.raises(KeyboardInterrupt) as error:
        consolidate.run(config(folder, out, "distill", **settings))
    assert "continue with: perturbjax consolidate" in error.value.__notes__[0]
    first = content(out / "training" / "distilled")
    found = consolidate.run(config(folder, out, "distill", resume=True, **settings))
    assert {path: data for path, data in content(out / "training" / "distilled").items() if path in first} == first
    assert [row.name for row in found.rows] == ["base", "vote", "distilled", "self-distilled", "gold labels", "consolidated"]
    assert found.row("distilled").search_tokens == found.row("self-distilled").search_tokens > found.row("gold labels").search_tokens
    looks = [(out / "training" / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("distilled", "gold-labels")]
    assert [json.loads(look)["step"] for look in looks] == [8, 8]
    assert found.row("self-distilled").difference == 0  # the base's own answers teach the base nothing else
    assert found.saved and found.row("distilled").difference == found.row("gold labels").difference > 0.5
    model = load_model(str(MODEL), "float32")
    lora, trained = read_adapter(out / "adapter", model)
    saved = load_model(str(out / "model"), "float32")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), lora.apply(model.params, trained), saved.params)


def test_a_generated_vote_is_learned_as_it_was_written(tmp_path, monkeypatch):
    one_batch_size(monkeypatch)
    parts = finished_run(tmp_path / "run", write_questions(tmp_path / "q.jsonl", 9, choices=False), (2, 2, 2))
    asker = measuring.Asker(parts, Ensemble.load(tmp_path / "run" / "ensemble.json"), make_engine(parts), tmp_path / "measured", SILENT)
    rows = unused_rows(parts)
    found = labels.label(asker, rows)
    batch = asker.engine.prepare(rows, parts.template)
    outputs = asker.members(batch, "again")
    for b, each in enumerate(found.rows):
        replies = [tuple(int(t) for t in reply[b] if t >= 0) for reply in outputs.reply_tokens]  # type: ignore[union-attr]
        assert each.reply in replies and each.shares == {}
        if each.voted is not None:
            assert each.voted == outputs.answers[replies.index(each.reply)][b]
    voted = [each for each in found.rows if each.reply]
    taught = labels.lessons(asker, [row for row, each in zip(rows, found.rows, strict=True) if each.reply], voted, shares=False)
    assert [each.response for each in taught.vote] == [each.reply for each in voted]
    with pytest.raises(InputError, match="`targets` shares: the answers of q are generated"):
        labels.rows_to_label(consolidate.Config(tmp_path / "run", by="distill", targets="shares"), parts)


def test_iterated_search_and_its_control_spend_the_same_and_end_the_same_after_a_stop(folder, tmp_path):
    settings = {"rounds": 2, "lengths": (1.0, 10.0)}
    whole = consolidate.run(config(folder, tmp_path / "whole", "iterate", **settings))
    iterated, control = whole.row("iterated"), whole.row("around the base")
    assert iterated.search_tokens == control.search_tokens
    once = whole.row("base").tokens / 5
    # 2 rounds of 6 candidates and 3 of 2 lengths and the base on 4 search questions; 3 rounds on 4 select questions.
    assert iterated.search_tokens == pytest.approx((12 + 6 + 1) * 4 * once + 3 * 4 * once, rel=0.05)  # prompts differ in length
    searched = sorted(path.name for path in (tmp_path / "whole" / "searches").iterdir())
    assert searched == ["around-the-base-1", "around-the-base-2", "iterated-1", "iterated-2"]
    tried = {(each.arm, each.option): each.accuracy for each in whole.gate.tried}
    assert tried["iterated", "round 0"] == tried["around the base", "round 0"] and len(tried) == 6
    assert whole.gate.arm == "iterated" and control.option in ("round 0", "round 1", "round 2")

    with failing_commits(5), pytest.raises(KeyboardInterrupt):
        consolidate.run(config(folder, tmp_path / "stopped", "iterate", **settings))
    again = consolidate.run(config(folder, tmp_path / "stopped", "iterate", resume=True, **settings))
    assert (again.rows, again.gate, again.notes) == (whole.rows, whole.gate, whole.notes)
    for name in searched:
        file = f"measured/search-{name[:-2]}-round-{name[-1]}.json"
        one, other = (json.loads((tmp_path / out / file).read_text()) for out in ("whole", "stopped"))
        assert one == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--by", "merge"], "nowhere: no run directory"),
        (["open", "--by", "merge"], "open: no ensemble.json, the search has not finished; continue it with: perturbjax randopt"),
        (["ivl", "--by", "merge"], "ivl: a run of ivl, which has no members; consolidate takes one of randopt"),
        (["single", "--by", "merge"], "single: the ensemble has 1 member, which is one model already; perturbjax select single"),
        (["changed", "--by", "merge"], "--resume: --model "),
        (["code", "--by", "merge"], "code: the run names Python code, which would be run; if you trust it, add --trust"),
        (["used", "--by", "distill"], "used: its splits hold all 9 questions of few, none is left to distill on; search again"),
        (["run", "--by", "distill", "--examples", "12"], "--examples 12: 11 questions of run are in no split of the run; ask for fewer"),
        (["run", "--by", "distill", "--train", "full", "--rank", "4"], "--rank 4: only LoRA has one"),
        (["run", "--by", "distill", "--rank", "4096"], "--rank 4096: "),
        (["run", "--by", "distill", "--epochs", "0"], "--epochs 0.0: a number above 0 is required"),
        (["run", "--by", "iterate", "--rounds", "0"], "--rounds 0: an integer of at least 1 is required"),
        (["run", "--by", "iterate", "--population", "1"], "--population 1: at least the 2 members of the ensemble are required"),
        (["run", "--by", "merge", "--rounds", "2"], "--rounds 2: --by merge does not take it; leave it out"),
        (["run", "--by", "merge", "--lengths", "1,-1"], "--lengths 1,-1: different numbers above 0 are required"),
        (["run", "--by", "merge", "--out", "even.jsonl"], "--out even.jsonl: not a directory that can be written"),
        (["run", "--by", "merge", "--out", "asked"], "--out asked: already holds a run"),
        (["run", "--by", "merge", "--out", "run/in"], "--out run/in: lies in the run directory"),
        (["run", "--by", "merge", "--resume", "--out", "merged"], "--resume: --lengths None, the run has 2.0,10.0"),
        (["run", "--by", "vote"], "--by"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, folder, broken, merged, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = content(folder)
    code, out, err = call(["consolidate", *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert message in err.splitlines()[-1] and content(folder) == before and "Traceback" not in err


@pytest.fixture(scope="module")
def broken(folder) -> None:
    """Runs that cannot be consolidated."""
    parts = finished_run(folder / "used", write_questions(folder / "few.jsonl", 9), (3, 3, 3))
    record = json.loads((folder / "run" / "config.json").read_text())
    searched_run(parts, folder / "open")
    save_ensemble(parts, searched_run(parts, folder / "single"))
    Ensemble(parts.population, [5], parts.noise, parts.fingerprint, [0.5]).save(folder / "single" / "ensemble.json")
    for name in ("ivl", "code", "changed"):
        shutil.copytree(folder / "run", folder / name)
    (folder / "ivl" / "config.json").write_text(json.dumps(record | {"chapter": "ivl"}))
    other = {"model": str(MODEL.with_name("tiny_llama_tied"))}
    for name, part, change in (("code", "data", {"task": "os:abort"}), ("changed", "base", other)):
        settings = record["config"] | {part: record["config"][part] | change}
        (folder / name / "config.json").write_text(json.dumps(record | {"config": settings}))


def test_a_question_that_members_and_base_answer_alike_teaches_nothing(folder, tmp_path, monkeypatch):
    label = labels._label
    monkeypatch.setattr(labels, "_label", lambda *a: labels.Labels(tuple(dataclasses.replace(r, hard=False) for r in label(*a).rows), 1))
    with pytest.raises(InputError, match="`rows` hard: on all 11 questions the members say the same as the base"):
        consolidate.run(config(folder, tmp_path / "out", "distill"))
    assert not (tmp_path / "out").exists()
