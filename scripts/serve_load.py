#!/usr/bin/env python
"""A server under load: requests one by one and together, malformed ones, slow clients, kill and restart.

    .venv/bin/python scripts/serve_load.py RUN [--requests 64] [--clients 8] [--malformed 1000] [-- OPTIONS OF perturbjax serve]

Starts `perturbjax serve RUN` itself, on a free port, and prints a line a figure. Exit code 1 where something did not hold: an answer to
malformed input that is not 4xx, a traceback, a reply lost at SIGTERM, another reply beside slow clients or after a restart. Replies beside
others may differ where two tokens are nearly alike, because sums in batches of another size are rounded otherwise: these are counted.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inputs import directory, exit_code

WORDS = ("the", "a", "sum", "of", "is", "3", "17", "and", "25", "what", "name", "color", "river", "why", "because", "tall", "green", "two")
TOKENS = 16


class Server:
    """`perturbjax serve`, started; what it says is kept."""

    def __init__(self, run: Path, options: list[str], log: Path):
        started = time.monotonic()
        with open(log, "ab") as file:
            command = [sys.executable, "-m", "perturbjax", "serve", str(run), "--port", "0", *options]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " at http://" not in line:
            raise SystemExit(f"serve_load: the server did not start: {log.read_text()[-2000:]}")
        self.port, self.start_s = int(line.rsplit(":", 1)[1].split("/")[0]), time.monotonic() - started

    def ask(self, path: str, body: bytes | None, headers: dict[str, str] | None = None, method: str = "POST") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, headers if headers is not None else {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def complete(self, prompt: str) -> tuple[str, float]:
        """Text, and seconds."""
        started = time.monotonic()
        status, content = self.ask("/v1/completions", json.dumps({"prompt": prompt, "max_tokens": TOKENS}).encode())
        if status != 200:
            raise SystemExit(f"serve_load: {status} {content[:300]!r}")
        return json.loads(content)["choices"][0]["text"], time.monotonic() - started


def figures(name: str, seconds: list[float], wall: float) -> float:
    """Prints them; requests per second."""
    ranked = sorted(seconds)
    p50, p99 = (ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in (0.5, 0.99))
    rate = len(seconds) / wall
    print(f"{name}: {len(seconds)} requests, {rate:.2f} a second, p50 {p50:.3f} s, p99 {p99:.3f} s", flush=True)
    return rate


def malformed(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A request that must be refused: its path, body and headers."""
    good = {"prompt": "a", "max_tokens": 2}
    bad_values = [None, -1, 1e308, "x" * 5000, [[]], {"a": {}}, True, "\x00\x1b[31m", 10**30, [10**12], float("nan")]
    headers, path = {"Content-Type": "application/json"}, "/v1/completions"
    kind = rng.randrange(8)
    if kind == 0:
        return path, rng.randbytes(rng.randrange(1, 400)), headers
    if kind == 1:
        text = json.dumps(good).encode()
        return path, text[: rng.randrange(len(text))], headers
    if kind == 2:
        return path, b"[" * rng.choice((1, 300, 100_000)), headers
    if kind == 3:
        return (
            path,
            json.dumps(
                good | {rng.choice(("max_tokens", "temperature", "prompt", "stop", "n")): rng.choice(bad_values[1:])} | {"surprise": 1}
            ).encode(),
            headers,
        )
    if kind == 4:
        return (
            "/v1/chat/completions",
            json.dumps({"messages": [{"role": rng.choice(("tool", "", "\u202e")), "content": rng.choice(bad_values)}]}).encode(),
            headers,
        )
    if kind == 5:
        return path, json.dumps(good).encode(), {"Content-Type": rng.choice(("text/plain", "", "application/x-www-form-urlencoded"))}
    if kind == 6:
        return path, json.dumps({"prompt": "word " * 5000}).encode(), headers
    return rng.choice(("/v1/completion", "/../etc/passwd", "/v1/%00", "/v1/models/x")), json.dumps(good).encode(), headers


def slow(port: int, seconds: float) -> None:
    """Half a request, and then nothing."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n"
            )
            time.sleep(seconds)
    except OSError:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=directory)
    for name, default in (("requests", 64), ("clients", 8), ("malformed", 1000), ("slow", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    own = sys.argv[1:].index("--") if "--" in sys.argv[1:] else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1 : own + 1]), sys.argv[own + 2 :]
    rng, failures = random.Random(0), []
    prompts = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 20))) for _ in range(given.requests)]
    server = Server(given.run, options, given.log)
    print(f"start: {server.start_s:.1f} s until it listens, all programs compiled", flush=True)
    try:
        started = time.monotonic()
        alone = [server.complete(prompt) for prompt in prompts]
        one_by_one = figures("one by one", [seconds for _, seconds in alone], time.monotonic() - started)
        with ThreadPoolExecutor(given.clients) as pool:
            started = time.monotonic()
            together = list(pool.map(server.complete, prompts))
            rate = figures(f"{given.clients} clients", [seconds for _, seconds in together], time.monotonic() - started)
        same = sum(one == other for (one, _), (other, _) in zip(alone, together, strict=True))
        print(
            f"together: {rate / one_by_one:.2f} times the requests a second; {same} of {len(prompts)} replies equal those alone", flush=True
        )

        started = time.monotonic()
        with ThreadPoolExecutor(given.clients) as pool:
            cases = [malformed(rng) for _ in range(given.malformed)]
            statuses = list(pool.map(lambda case: server.ask(*case), cases))
        counts = {status: sum(found == status for found, _ in statuses) for status in sorted({found for found, _ in statuses})}
        longest = max(len(body) for _, body in statuses)
        print(
            f"malformed: {len(cases)} in {time.monotonic() - started:.1f} s, statuses {counts}, longest answer {longest} bytes", flush=True
        )
        failures += ["malformed"] if any(not 400 <= status < 500 or b"Traceback" in body for status, body in statuses) else []

        threads = [threading.Thread(target=slow, args=(server.port, 30), daemon=True) for _ in range(given.slow)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        beside = [server.complete(prompt) for prompt in prompts[: given.clients]]
        figures(f"beside {given.slow} slow clients, one by one", [seconds for _, seconds in beside], time.monotonic() - started)
        failures += ["slow clients"] if [text for text, _ in beside] != [text for text, _ in alone[: given.clients]] else []

        with ThreadPoolExecutor(1) as pool:
            last = pool.submit(server.complete, prompts[0])
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            finished, code = last.result()[0] == alone[0][0], server.process.wait(120)
        print(f"SIGTERM: the request that ran was {'finished' if finished else 'LOST'}, exit code {code}", flush=True)
        failures += ["SIGTERM"] if code or not finished else []
        server = Server(given.run, options, given.log)
        server.process.kill()
        server.process.wait()
        server = Server(given.run, options, given.log)
        again = server.complete(prompts[0])[0] == alone[0][0]
        print(
            f"kill -9 and restart: {server.start_s:.1f} s until it listens, the reply is {'the same' if again else 'ANOTHER'}", flush=True
        )
        failures += [] if again else ["restart"]
    finally:
        server.process.kill()
        server.process.wait()
    if given.log.is_file() and "Traceback" in given.log.read_text():
        failures.append("a traceback in the log")
    print("all held" if not failures else f"DID NOT HOLD: {', '.join(failures)}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
