"""What can happen to a search of several processes, and that it costs no more than the chunks in the air.

The full set, at more moments, is scripts/fault_drill.py; the state's own damages are in tests/runs/test_state.py.
"""

import random
import signal
import subprocess
import sys
import time

import pytest
from fault_runs import PROGRAM, Run, complete, differences, free_port, lines, write_questions
from support.cli_tiny import search_arguments
from support.paths import SCRIPTS

from perturbjax.cluster.peers import PEER_LOST, PREEMPTED

LAUNCH = SCRIPTS / "launch_local.py"
SEARCH = {"population": 64, "search_examples": 32, "chunk": 2, "noise": "rademacher"}
"""Two rounds of a race, in 34 chunks."""
DISTURBED = [
    (signal.SIGKILL, (0,), {"processes": 2}),
    (signal.SIGKILL, (1,), {"processes": 2, "model": 2}),
    (signal.SIGKILL, (0, 1), {"processes": 2}),
    (signal.SIGKILL, (0,), {"processes": 1}),
    (signal.SIGTERM, (1,), {"processes": 2}),
]
"""What happens to one run, one after the other: the signal, to which processes, of how many on which mesh."""


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """The arguments of a search, its programs compiled once for all, and the directory of an undisturbed one of one process."""
    folder = tmp_path_factory.mktemp("faults")
    questions = write_questions(folder / "questions.jsonl", 40)
    arguments = search_arguments(questions, folder / "unused", compile_cache=folder / "programs", **SEARCH)[1:]
    place = arguments.index("--out")
    arguments = arguments[:place] + arguments[place + 2 :]
    complete(folder / "undisturbed", arguments)
    return arguments, folder / "undisturbed"


def test_a_run_killed_and_stopped_again_and_again_on_other_meshes_ends_as_if_undisturbed(search, tmp_path):
    arguments, undisturbed = search
    moments = random.Random(time.time_ns())
    before, kept = [], []
    for number, victims, how in DISTURBED:
        more, later = moments.randrange(1, 4), moments.uniform(0, 0.3)
        with Run(tmp_path / "run", arguments, **how) as run:
            # What was not on disk when the process before was killed is reported anew.
            now = run.wait_for(len(before) + more, later)
            run.send(number, victims)
            codes, seconds = run.end(within=30)
        print(f"{number.name} to {victims} of {how}, {len(now)} chunks and {later:.2f} s from the start; ended in {seconds:.2f} s")
        assert now[: len(kept)] == kept, "a committed chunk was lost"
        assert len(now) < len(lines(undisturbed)), "it was over before it was disturbed"
        check_ends(number, victims, codes, run.said)
        assert seconds < 10
        before, kept = now, now[:-1]
    refused(tmp_path / "run", arguments)
    complete(tmp_path / "run", arguments, devices=2, model=2)
    assert differences(tmp_path / "run", undisturbed, before) == []


def refused(out, arguments):
    """What process 0 alone knows of, it alone says, and all end."""
    (out / "state" / "notes.txt").write_text("hello")
    with Run(out, arguments, processes=2) as run:
        codes, _ = run.end(within=60)
    assert codes == [2, 2], run.said
    assert "notes.txt is not part of a state" in run.said[0].splitlines()[-1] and "perturbjax:" not in run.said[1]
    (out / "state" / "notes.txt").unlink()


def check_ends(number, victims, codes, said):
    if number == signal.SIGTERM:
        assert codes == [PREEMPTED, PREEMPTED], said
        # Not always last: the first look at the reliability falls due in one of the chunks, and its warning may come after.
        assert sum(line.startswith("perturbjax: told to stop (SIGTERM); what ") for line in said[0].splitlines()) == 1, said[0]
        assert "perturbjax:" not in said[1], "process 0 alone prints"
    for index, (code, words) in enumerate(zip(codes, said, strict=True)):
        assert "Traceback" not in words and "Check failure" not in words, words
        if number == signal.SIGKILL and index in victims:
            assert code == -signal.SIGKILL
        elif number == signal.SIGKILL:
            (last,) = [line for line in words.splitlines() if "has died" in line]
            lost = f"perturbjax: process {victims[0]} of {len(codes)} has died or cannot be reached; what "
            assert code == PEER_LOST and last.startswith(lost) and "--resume" in last


def test_sigterm_to_the_launcher_reaches_all(search, tmp_path):
    arguments, _ = search
    command = [sys.executable, "-m", "perturbjax", "randopt", *arguments, "--out", str(tmp_path / "run")]
    launched = [sys.executable, str(LAUNCH), "--processes", "2", "--devices", "1", "--", *command]
    with subprocess.Popen(launched, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, said
    assert said.count("told to stop (SIGTERM)") == 1 and "Traceback" not in said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_is_noticed_within_the_stated_time(search, tmp_path, victim):
    arguments, _ = search
    with Run(tmp_path / "run", arguments, processes=2, limits={"perturbjax.cluster.peers.TIMEOUT_S": 4.0}) as run:
        run.wait_for(2)
        run.send(signal.SIGSTOP, [victim])
        codes, seconds = run.end(within=30, but=[victim])
    assert codes == [PEER_LOST] and 2 < seconds < 12
    assert f"process {victim} of 2 has died or cannot be reached" in run.said[1 - victim].splitlines()[-1]


@pytest.mark.parametrize("alone", [0, 1])
def test_processes_that_do_not_come_are_not_waited_for_forever(search, tmp_path, alone):
    arguments, _ = search
    joining = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id", str(alone)]
    command = [sys.executable, str(PROGRAM), '{"perturbjax.cluster.distributed.ARRIVAL_S": 3}', "randopt", *arguments]
    done = subprocess.run([*command, "--out", str(tmp_path / "run"), *joining], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == PEER_LOST, done.stderr
    (said,) = done.stderr.splitlines()
    assert f"process {alone} of 2: not all processes met at 127.0.0.1:" in said and "within 3 s" in said
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_see_the_run_directory_says_so_and_all_end(search, tmp_path):
    arguments, _ = search
    other = {"elsewhere": str(tmp_path / "other"), "perturbjax.runs.state.VISIBLE_S": 0.5}
    with Run(tmp_path / "run", arguments, processes=2, limits=[{}, other]) as run:
        codes, _ = run.end(within=90)
    assert codes == [2, 2], run.said
    needed = f"--out {tmp_path}/other{tmp_path}/run: process 1 of 2 does not see what process 0 wrote there; give a directory that all"
    assert f"perturbjax: error: {needed}" in run.said[1].splitlines()[-1]
    assert "perturbjax: process 1 of 2 has ended (" in run.said[0].splitlines()[-1] and needed in run.said[0]
    assert not list((tmp_path / "other").rglob("*.*")), "nothing is written elsewhere"
