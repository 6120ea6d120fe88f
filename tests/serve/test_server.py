"""The server over a socket: replies equal those of prompts alone, whatever is answered beside them; hostile input is one line."""

import concurrent.futures
import json
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES
from support.serving import running

from perturbjax.inference.decode import NO_TOKEN, generate
from perturbjax.pretrained import load_model
from perturbjax.serve.config import Limits
from perturbjax.serve.desk import Served
from perturbjax.serve.one_model import OneModel
from perturbjax.serve.replies import ReplyText

LIMITS = Limits(max_tokens=12, max_prompt_tokens=64, max_batch=4, max_queue=8, max_body=20_000, max_wait_ms=30, request_timeout_s=1)
TEXTS = ["the quick brown fox", "a", "is 4 an even number? yes or no", "one two three four five six seven"]


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_llama3"), "float32")


@pytest.fixture(scope="module")
def answering(model):
    one = OneModel(model, LIMITS)
    one.warm_up(lambda _: None)
    return one


@pytest.fixture(scope="module")
def client(model, answering):
    with running(Served(model.name, model.tokenizer, model.config.vocab_size, answering), LIMITS) as client:
        yield client


@pytest.fixture(scope="module")
def alone(model):
    """Greedy text and number of tokens of a prompt without a server and without others."""

    @jax.jit
    def run(row, lengths, limits):
        decoder = model.config.build(model.params)
        return generate(decoder, row, lengths, jnp.ones(1, bool), LIMITS.max_tokens, model.tokenizer.stop_ids, limits_B=limits)

    def reply(text: str, length: int = LIMITS.max_tokens) -> tuple[str, int]:
        tokens = ([] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]) + model.tokenizer.encode(text)
        row = jnp.asarray(tokens + [0] * (LIMITS.max_prompt_tokens - len(tokens)))[None]
        found = run(row, jnp.asarray([len(tokens)]), jnp.asarray([length]))
        ids = [int(token) for token in np.asarray(found.tokens)[0] if token != NO_TOKEN and token not in model.tokenizer.stop_ids]
        return model.tokenizer.decode(ids), len(ids)

    return reply


def test_replies_equal_those_of_prompts_alone_and_nothing_is_compiled_after_warm_up(client, answering, alone):
    traces = answering.traces
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: client.post("/v1/completions", prompt=text), TEXTS * 2))
    for text, each in zip(TEXTS * 2, found, strict=True):
        said, tokens = alone(text)
        (choice,) = each["choices"]
        assert (choice["text"], each["usage"]["completion_tokens"]) == (said, tokens)
        assert choice["finish_reason"] == ("length" if tokens == LIMITS.max_tokens else "stop")
    short = client.post("/v1/completions", prompt=TEXTS[0], max_tokens=3)
    assert short["usage"]["completion_tokens"] <= 3 and short["choices"][0]["text"] == alone(TEXTS[0], 3)[0]
    assert answering.traces == traces


def test_a_stream_says_the_same_and_ends(client, model):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]
    whole = client.post("/v1/chat/completions", messages=turns, model=model.name)
    events = client.stream("/v1/chat/completions", messages=turns, stream_options={"include_usage": True})
    *pieces, usage = events
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in pieces) == whole["choices"][0]["message"]["content"]
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant" and len(pieces) > 1
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["usage"] == whole["usage"]


def test_a_seed_gives_the_same_sample_whatever_stands_beside_it(client):
    asked = {"prompt": TEXTS[0], "temperature": 1.5}
    first = client.post("/v1/completions", **asked, seed=7)["choices"]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        again, other, _ = pool.map(lambda seed: client.post("/v1/completions", **asked, seed=seed)["choices"], (7, 8, 9))
    assert again == first and other != first


def test_a_stop_text_ends_a_reply_and_is_not_part_of_it(client, alone):
    said, _ = alone(TEXTS[0])
    stop = said[3:5]
    found = client.post("/v1/completions", prompt=TEXTS[0], stop=[stop])["choices"][0]
    assert found == {"index": 0, "text": said[: said.index(stop)], "finish_reason": "stop", "logprobs": None}
    events = client.stream("/v1/completions", prompt=TEXTS[0], stop=stop)
    assert "".join(event["choices"][0]["text"] for event in events) == found["text"]


def test_models_health_and_metrics(client, model):
    assert json.loads(client.send("GET", "/v1/models")[2])["data"][0]["id"] == model.name
    assert json.loads(client.send("GET", "/health")[2]) == {"status": "ok"}
    client.post("/v1/completions", prompt="a")
    figures = client.send("GET", "/metrics")[2].decode()
    assert 'perturbjax_requests_total{route="/v1/completions",status="200"}' in figures
    assert "perturbjax_queue_depth 0.0" in figures and "perturbjax_batch_size_bucket" in figures


GOOD = {"prompt": "a"}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "Invalid JSON"),
        (b"{", 400, "Invalid JSON"),
        (b"[" * 5_000, 400, "recursion limit"),
        (b'{"prompt": "\xff"}', 400, "Invalid JSON"),
        (b'{"prompt": "\\ud800"}', 400, "Invalid JSON"),
        (b"[]", 400, "request: "),
        ({}, 400, "prompt: Field required"),
        ({"prompt": ""}, 200, ""),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": [3, 10**9]}, 400, "token ids below"),
        ({"prompt": [-1]}, 400, "greater than or equal to 0"),
        ({"prompt": [True]}, 400, "valid integer"),
        (GOOD | {"max_tokens": 13}, 400, "max_tokens: 13; at most 12"),
        (GOOD | {"max_tokens": 0}, 400, "max_tokens"),
        (GOOD | {"temperature": -1}, 400, "temperature"),
        (GOOD | {"temperature": 1e400}, 400, "temperature"),
        (GOOD | {"n": 2}, 400, "n: "),
        (GOOD | {"top_p": 0.5}, 400, "top_p"),
        (GOOD | {"best_off": 1}, 400, "best_off: Extra inputs are not permitted"),
        (GOOD | {"x" * 5000 + "\x1b[31m": 1}, 400, "xxx"),
        (GOOD | {"stop": ["a"] * 9}, 400, "stop"),
        (GOOD | {"model": "gpt\x1b"}, 404, "model: 'gpt\\x1b' is not here"),
        ({"prompt": "word " * 200}, 400, "tokens; at most 64"),
        ({"prompt": "x" * 30_000}, 413, "at most 20000 bytes"),
    ],
    ids=range(24),
)
def test_what_cannot_be_answered_is_one_line(client, body, status, said):
    if status == 200:  # an empty text still has the token that texts begin with
        assert client.send("POST", "/v1/completions", body)[0] == 200
        return
    found, message = client.refused("/v1/completions", body)
    assert found == status and said in message, message
    assert len(message) < 1100 and "\n" not in message and "\x1b" not in message and "Traceback" not in message
    assert client.notes == []


def test_chats_are_checked(client):
    for messages, said in (([], "messages"), ([{"role": "tool", "content": "x"}], "messages.0.role"), ([{"role": "user"}], "content")):
        status, message = client.refused("/v1/chat/completions", {"messages": messages})
        assert status == 400 and said in message
    assert client.refused("/v1/completions", GOOD, Content_Type="text/plain") == (415, "content-type: application/json is required")
    assert client.refused("/v1/completions", GOOD, Host="evil.example:80")[0] == 403
    assert client.send("GET", "/docs")[0] == 404 and client.send("GET", "/v1/completions")[0] == 405


def test_slow_clients_are_let_go_and_others_do_not_wait(client):
    def slow(head: bytes) -> tuple[bytes, float]:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", client.port), 30) as connection:
            connection.sendall(head)
            return connection.recv(4000), time.monotonic() - started

    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        half_body, half_head = pool.submit(slow, head + b"\r\n{"), pool.submit(slow, head)
        client.post("/v1/completions", prompt="a")
        said, seconds = half_body.result()
        assert b" 408 " in said and seconds < 5
        said, seconds = half_head.result()
        assert said == b"" and seconds < 5


class Held:
    """What answers when it is told to."""

    streams, traces = True, 0

    def __init__(self, inner: OneModel):
        self.inner, self.go, self.sizes, self.fails = inner, threading.Event(), [], False

    def answer(self, batch):
        self.go.wait(60)
        self.sizes.append(len(batch))
        if self.fails:
            raise RuntimeError("secret of the machine")
        return self.inner.answer(batch)

    def warm_up(self, note): ...


def test_a_full_queue_is_429_a_failed_batch_500_and_a_stop_finishes_what_waits(model, answering):
    held = Held(answering)
    served = Served(model.name, model.tokenizer, model.config.vocab_size, held)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        with running(served, LIMITS) as client:
            first = [pool.submit(client.send, "POST", "/v1/completions", GOOD)]
            time.sleep(0.3)  # it is taken as a batch of its own
            first += [pool.submit(client.send, "POST", "/v1/completions", GOOD) for _ in range(8)]
            deadline = time.monotonic() + 20
            while "perturbjax_queue_depth 8.0" not in client.send("GET", "/metrics")[2].decode():
                assert time.monotonic() < deadline
            status, headers, body = client.send("POST", "/v1/completions", GOOD)
            assert status == 429 and headers["retry-after"] == "1" and b"8 requests wait already" in body
            held.go.set()
            assert [each.result()[0] for each in first] == [200] * 9 and held.sizes == [1, 4, 4]
            held.fails = True
            status, _, body = client.send("POST", "/v1/completions", GOOD)
            assert status == 500 and b"secret" not in body and "secret of the machine" in client.notes[0]
            held.fails = False
            held.go.clear()
            last = pool.submit(client.send, "POST", "/v1/completions", GOOD)
            time.sleep(0.3)
            threading.Timer(0.5, held.go.set).start()
        assert last.result()[0] == 200  # the server was told to stop before it was answered


def test_a_token_is_required_where_there_is_one(model, answering):
    served, token = Served(model.name, model.tokenizer, model.config.vocab_size, answering), "correct-horse-battery"
    with running(served, LIMITS, token, local=False) as client:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}, {"Authorization": f"Basic {token}"}):
            status, message = client.refused("/v1/completions", GOOD, **given)
            assert status == 401 and token not in message
        assert client.send("GET", "/metrics")[0] == 401 and client.send("GET", "/health")[0] == 200
        assert client.send("POST", "/v1/completions", GOOD, Authorization=f"Bearer {token}", Host="elsewhere")[0] == 200


def test_a_client_that_leaves_a_stream_frees_its_row(client, answering):
    with socket.create_connection(("127.0.0.1", client.port), 30) as connection:
        body = json.dumps(GOOD | {"stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert connection.recv(10)
    assert client.post("/v1/completions", prompt="a")["object"] == "text_completion"
    assert client.notes == []


@pytest.mark.parametrize("stops", [(), ("ab", "é!")])
def test_pieces_of_a_text_add_up_to_it(model, stops):
    ids = model.tokenizer.encode("naïve café, 漢字 and aab more")
    whole = model.tokenizer.decode(ids)
    for size in (1, 2, 5):
        reply = ReplyText(model.tokenizer, stops)
        pieces = [reply.push(ids[i : i + size], last=i + size >= len(ids)) for i in range(0, len(ids), size)]
        expected = whole[: whole.index("ab")] if stops else whole
        assert "".join(pieces) == expected and reply.stopped == bool(stops) and not any("\ufffd" in piece for piece in pieces)
