"""Several processes on this machine, joined by gloo, give the files of one; and mistakes in how they are started are said."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest
from support.cli_tiny import search_arguments, write_questions
from support.paths import ROOT, SCRIPTS, SUPPORT

from perturbjax.cli import main
from perturbjax.cluster import peers
from perturbjax.cluster.preemption import cluster_run
from perturbjax.errors import InputError
from perturbjax.randopt.config import Machine
from perturbjax.runs import identity

LAUNCH = SCRIPTS / "launch_local.py"
SMALL = {"racing": "off", "chunk": 4, "population": 7, "searcher": "screen", "screened": 20}
# Noise of few leaves, each sharded in another way; of all of them on meshes it is what ``test_mesh`` compares.
SMALL |= {"noise": "rademacher", "rules": "^(?!embed|layers/attention/k|layers/mlp/down)=exclude"}


def test_two_processes_on_a_mesh_give_the_files_of_one(tmp_path, capfd):
    questions = write_questions(tmp_path / "questions.jsonl")
    assert main(search_arguments(questions, tmp_path / "one", **SMALL)) == 0
    capfd.readouterr()
    command = [sys.executable, "-m", "perturbjax", *search_arguments(questions, tmp_path / "two", mesh="2x2", **SMALL)]
    launched = [sys.executable, str(LAUNCH), "--processes", "2", "--devices", "2", "--", *command]
    done = subprocess.run(launched, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory") == 1 and done.stderr.count("task questions:") == 1, "process 0 alone prints"
    one, two = tmp_path / "one", tmp_path / "two"
    assert pq.read_table(one / "candidates.parquet").equals(pq.read_table(two / "candidates.parquet"))
    assert (one / "ensemble.json").read_bytes() == (two / "ensemble.json").read_bytes()
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    for part in ("base", "self_consistency", "best_prompt", "random_k", "randopt", "selection", "ties", "splits"):
        assert results[0][part] == results[1][part], part
    assert json.loads((two / "config.json").read_text())["devices"] | {"kinds": []} == {
        "backend": "cpu", "kinds": [], "count": 4, "processes": 2,
    }  # fmt: skip
    # What one process began, several can continue, and the other way round: the mesh is not part of a run.
    assert main([*search_arguments(questions, two, **SMALL), "--resume"]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": "4"}, "`mesh` 4: DATAxMODEL is required"),
        ({"mesh": "0x2"}, "`mesh` 0x2: DATAxMODEL is required"),
        ({"coordinator": "here"}, "`coordinator` here: HOST:PORT, with a port from 1 to 65535, or cluster is required"),
        ({"coordinator": "a:0", "num_processes": 1, "process_id": 0}, "`coordinator` a:0: HOST:PORT, with a port"),
        ({"coordinator": "a:65536", "num_processes": 1, "process_id": 0}, "`coordinator` a:65536: HOST:PORT, with a port"),
        ({"coordinator": "a:1", "num_processes": 2}, "`process_id` None: `coordinator` HOST:PORT needs both"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "`process_id` 2: `coordinator` HOST:PORT needs both"),
        ({"num_processes": 2}, "only together with `coordinator` HOST:PORT"),
        ({"coordinator": "cluster", "process_id": 0}, "only together with `coordinator` HOST:PORT"),
    ],
)
def test_mistakes_in_mesh_and_processes_are_said_before_anything_is_loaded(settings, message):
    with pytest.raises(InputError) as error:
        Machine(**settings).validate()
    assert message in str(error.value)


def test_a_mesh_of_other_devices_is_refused_before_anything_is_written(tmp_path, capsys):
    questions = write_questions(tmp_path / "questions.jsonl")
    assert main(search_arguments(questions, tmp_path / "run", mesh="4x2")) == 2
    assert "--mesh 4x2: 8 devices, there are 1; use e.g. 1x1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


JOINS = """
from perturbjax.cluster.distributed import join
host = join("cluster", None, None)
import jax
print(host, jax.process_index(), jax.process_count(), jax.device_count())
"""


def test_the_processes_of_a_slurm_job_find_each_other():
    def one(index: int) -> subprocess.Popen[str]:
        slurm = {
            "JOB_ID": os.getpid(),
            "STEP_NODELIST": "localhost",
            "NTASKS": "2",
            "STEP_NUM_TASKS": "2",
            "PROCID": index,
            "LOCALID": index,
        }
        env = os.environ | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        env |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        return subprocess.Popen([sys.executable, "-c", JOINS], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    said = [process.communicate(timeout=60) for process in [one(0), one(1)]]
    assert [out.split() for out, _ in said] == [["localhost", str(index), "2", "4"] for index in (0, 1)], said


def test_processes_broadcast_json_and_arrays_and_write_one_state_together(tmp_path):
    """See ``cluster_programs``: sizes of messages, errors of process 0, a sharded state on other meshes and its damage."""
    program = [sys.executable, "-W", "error", str(SUPPORT / "cluster_programs.py"), str(tmp_path)]
    launched = [sys.executable, str(LAUNCH), "--processes", "2", "--devices", "2", "--", *program]
    done = subprocess.run(launched, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and done.stdout.count("ok") == 2, done.stdout + done.stderr


def test_nothing_that_is_received_or_read_is_unpickled():
    for folder in ("perturbjax", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"import pickle|pickle\.|cloudpickle|marshal", path.read_text()), path


def test_process_0_takes_no_connection_without_the_token(monkeypatch):
    """Strangers come first: one sends nothing, one no JSON, one without end, one a wrong token; each is closed and not waited for."""
    monkeypatch.setattr(peers, "_HELLO_S", 0.3)
    main = peers.Peers(None, print)
    main._count = 2
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    accepting = threading.Thread(target=main._accept, args=(listening, "right"), daemon=True)
    accepting.start()
    said = (b"", b"hello\n", b"x" * 10_000, b'{"token": "wrong", "index": 1}\n', b'{"token": "right", "index": 1}\n')
    callers = [socket.create_connection(address) for _ in said]
    for caller, words in zip(callers, said, strict=True):
        caller.sendall(words)
    accepting.join(timeout=10)
    assert not accepting.is_alive() and list(main._connections) == [1]
    assert main._connections[1].socket.getpeername() == callers[-1].getsockname()
    for caller in callers[:-1]:
        caller.settimeout(1)
        with contextlib.suppress(ConnectionResetError):
            assert caller.recv(1) == b""
    for end in (*callers, main._connections[1].socket):
        end.close()


def test_heartbeats_listen_on_loopback_where_all_processes_are_on_one_machine():
    with peers._listen(["127.0.0.1", "127.0.0.1"]) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_a_process_with_other_settings_than_process_0_says_so(monkeypatch):
    monkeypatch.setattr(identity, "broadcast_json", lambda mine: mine | {"seed": 0})
    with pytest.raises(InputError, match=r"process 0 of 1: `seed` 1, the run has 0 \(on process 0\)"):
        identity.check_agreement({"seed": 1, "top_k": 2})


def test_nothing_of_a_run_is_held_by_a_thread_after_it():
    with cluster_run(print, None, None, None):
        assert any(thread.name == "preemption" for thread in threading.enumerate())
    assert not any(thread.name == "preemption" for thread in threading.enumerate())
