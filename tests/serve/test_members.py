"""The vote of a run over a socket, what each chapter's run serves, and the command: against a loop over the members' dense weights."""

import dataclasses
import http.client
import signal
import socket
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.chapter import call
from support.searched import save_ensemble, searched_parts, searched_run
from support.serving import running

from perturbjax.cli import main
from perturbjax.errors import InputError
from perturbjax.inference.decode import NO_TOKEN, generate
from perturbjax.noise import Population, perturb
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.serve import server
from perturbjax.serve.config import Limits
from perturbjax.serve.one_model import OneModel
from perturbjax.serve.runs import Choice, open_run
from perturbjax.serve.server import serving
from perturbjax.serve.work import Piece, Work
from perturbjax.tasks.base import Example

LIMITS = Limits(max_tokens=6, max_prompt_tokens=32, max_batch=1, max_wait_ms=1)
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    parts = searched_parts(folder, noise="rademacher")  # compiles in less time than gaussian
    directory = searched_run(parts, folder / "run")
    save_ensemble(parts, directory)
    return directory.path


@pytest.fixture(scope="module")
def opened(run):
    return open_run(run, Choice(), lambda _: None)


@pytest.fixture(scope="module")
def replies(opened):
    """What each member writes alone, best first."""
    model, ensemble = opened.model, opened.ensemble
    tokens = ([] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]) + model.tokenizer.encode(PROMPT)
    row = jnp.asarray(tokens)[None]

    @jax.jit
    def alone(candidate):
        decoder = model.config.build(perturb(model.params, candidate, ensemble.noise))
        return generate(decoder, row, jnp.asarray([len(tokens)]), jnp.ones(1, bool), 6, model.tokenizer.stop_ids).tokens[0]

    def text(index: int) -> str:
        found = np.asarray(alone(ensemble.population[index]))
        return model.tokenizer.decode([int(t) for t in found if t != NO_TOKEN and t not in model.tokenizer.stop_ids])

    return [text(int(index)) for index in ensemble.members]


def test_members_vote_by_the_text_of_their_replies_to_open_questions(opened, replies):
    notes: list[str] = []
    served = serving(opened, LIMITS, notes.append)
    assert "task even does not read replies" in notes[0] and served.name == "tiny_llama3+vote"
    served.answering.warm_up(lambda _: None)
    traces = served.answering.traces
    with running(served, LIMITS) as client:
        found = client.post("/v1/completions", prompt=PROMPT)
        assert client.refused("/v1/completions", {"prompt": "a", "stream": True})[1].startswith("stream: a vote is known when")
        assert client.refused("/v1/completions", {"prompt": "a", "temperature": 0.5})[1].startswith("temperature: members of a vote")
    votes = Counter(text.strip() for text in replies)  # in the order of the members, so a tie goes to the best
    answer, count = votes.most_common(1)[0]
    assert found["vote"] == {"answer": answer, "share": count / 2, "votes": dict(votes), "members": 2, "asked": 2}
    assert found["choices"][0]["text"].strip() == answer and served.answering.traces == traces


def test_early_exit_asks_members_while_the_vote_of_a_request_is_open(opened):
    # Five members that write the same: three settle it. Of two requests both end there.
    ensemble = Ensemble(Population(1, 5, (1e-7,)), range(5), opened.ensemble.noise, opened.ensemble.fingerprint)
    limits = dataclasses.replace(LIMITS, max_batch=2)
    found = []
    for early_exit in (None, 0.0):
        answering = serving(dataclasses.replace(opened, ensemble=ensemble, early_exit=early_exit), limits, lambda _: None).answering
        pieces: list[Piece] = []
        spent = answering.answer([Work([5, 6, 7], 6, pieces.append), Work([8], 6, pieces.append)])
        found.append((spent, [piece.tokens for piece in pieces], [piece.vote["asked"] for piece in pieces if piece.vote]))
    (all_spent, all_tokens, all_asked), (spent, tokens, asked) = found
    assert (all_asked, asked) == ([5, 5], [3, 3]) and tokens == all_tokens and spent == all_spent * 3 / 5


class Sums:
    """A generation task that reads the first letter."""

    kind = "generation"
    name = "letters"

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        return next((c for c in text if c.isalnum()), None)

    def vote_key(self, answer: str, example: Example) -> str:
        return answer.lower()


def test_a_generation_task_reads_the_replies(opened, replies):
    parts = dataclasses.replace(opened.parts, task=Sums())
    served = serving(dataclasses.replace(opened, parts=parts), LIMITS, pytest.fail)
    with running(served, LIMITS) as client:
        found = client.post("/v1/completions", prompt=PROMPT)["vote"]
        counted = client.send("GET", "/metrics")[2].decode()
    assert "perturbjax_votes_total 2.0" in counted and "perturbjax_votes_saved_total 0.0" in counted
    letters = [next((c for c in text if c.isalnum()), None) for text in replies]
    keys = Counter(letter.lower() for letter in letters if letter)
    if keys:
        assert found["share"] == keys.most_common(1)[0][1] / 2 and found["answer"].lower() == keys.most_common(1)[0][0]
    else:
        assert found["answer"] is None and found["share"] == 0


class SameLetters(Sums):
    """Votes by letters as written, which it finds the same if they are of one kind."""

    def vote_key(self, answer: str, example: Example) -> str:
        return answer

    def same(self, a: str, b: str, example: Example) -> bool:
        return a.isdigit() == b.isdigit()


def test_a_task_may_compare_the_answers_two_by_two(opened, monkeypatch):
    answering = serving(
        dataclasses.replace(opened, parts=dataclasses.replace(opened.parts, task=SameLetters())), LIMITS, pytest.fail
    ).answering
    said = np.array([[opened.model.tokenizer.encode(text)[:1]] for text in "ab"])
    monkeypatch.setattr(answering, "_run", lambda ranks, arrays: (said[ranks], np.ones((len(ranks), 1), bool)))
    pieces: list[Piece] = []
    answering.answer([Work([5], 6, pieces.append, question="?")])
    assert pieces[0].vote == {"answer": "a", "share": 1.0, "votes": {"a": 2}, "members": 2, "asked": 2}


def test_one_model_of_a_run_and_what_it_does_not_have(run, opened):
    ensemble = Ensemble.load(run / "ensemble.json")
    first = open_run(run, Choice(rank=1), lambda _: None)
    expected = perturb(opened.model.params, ensemble.population[int(ensemble.members[0])], ensemble.noise)
    np.testing.assert_array_equal(first.model.params["norm"]["scale"], expected["norm"]["scale"])
    assert (first.model.name, first.ensemble) == ("tiny_llama3+rank1", None)
    assert open_run(run, Choice(base=True), lambda _: None).model.name == "tiny_llama3"
    for choice, message in (
        (Choice(rank=3), "`rank` 3: the ensemble has ranks 1 to 2"),
        (Choice(cell="x"), "`cell` x: .* is a run of randopt, which does not take it"),
        (Choice(base=True, merge=True), "`base`, `merge`: at most one"),
        (Choice(rank=1, early_exit=0.0), "`early_exit`, `rank`: at most one"),
    ):
        with pytest.raises(InputError, match=message):
            open_run(run, choice, lambda _: None)


def test_the_command_checks_before_it_loads(run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PERTURBJAX_TOKEN", raising=False)
    (tmp_path / "short").write_text("secret")
    taken = socket.create_server(("127.0.0.1", 0))
    for arguments, message in (
        (
            ["--host", "0.0.0.0"],
            "--host 0.0.0.0: other machines could reach the server; give it a token in --token-file or PERTURBJAX_TOKEN",
        ),
        (["--host", "example.org"], "other machines could reach"),
        (["--port", "70000"], "--port 70000: a number from 0 to 65535"),
        (["--max-batch", "0"], "--max-batch 0: an integer of at least 1"),
        (["--max-batch", "300"], "--max-batch 300: at most 256"),
        (["--token-file", str(tmp_path / "none")], "none: a file that can be read is required"),
        (["--token-file", str(tmp_path / "short")], "a token of 16 to 512 printable ASCII characters"),
        (["--port", "0", "--max-prompt-tokens", "16000"], "lower one of them"),
        (["--port", str(taken.getsockname()[1])], "nothing can listen there (Address already in use)"),
    ):
        code, out, err = call(["serve", str(run), *arguments], capsys)
        assert code == 2 and message in err.splitlines()[-1] and "secret" not in err and out == "", err
    taken.close()


def test_the_command_serves_what_it_opened(run, capsys, monkeypatch):
    heard = []
    monkeypatch.setattr(OneModel, "warm_up", lambda _, note: note("warm"))
    monkeypatch.setattr(server, "listen", lambda app, bound, limits, ready: (ready(), heard.append((bound.getsockname(), limits))))
    sizes = ["--port", "0", "--max-batch", "1", "--max-prompt-tokens", "32", "--max-tokens", "6", "--compile-cache", "off"]
    code, out, err = call(["serve", str(run), "--rank", "1", *sizes], capsys)
    (((host, port), limits),) = heard
    assert code == 0 and out.splitlines() == [f"tiny_llama3+rank1 at http://127.0.0.1:{port}/v1", "stopped"]
    assert err.splitlines()[-1] == "warm"
    assert (host, limits.max_prompt_tokens) == ("127.0.0.1", 32)
    assert main(["serve", str(run), "--port", "0", "--base", "--merge"]) == 2


PROGRAM = """
import asyncio, sys
from perturbjax.serve.config import Limits
from perturbjax.serve.server import bind, listen
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    print("asked", flush=True)
    await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})
bound = bind("127.0.0.1", 0)
listen(app, bound, Limits(), lambda: print(bound.getsockname()[1], flush=True))
print("stopped")
"""


def test_sigterm_finishes_what_runs_and_is_no_failure():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=30)
        connection.request("GET", "/")
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert connection.getresponse().read() == b"done"
        connection.close()
        assert process.wait(30) == 0 and process.stdout.read() == "stopped\n"
