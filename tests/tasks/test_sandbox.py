"""Hostile programs in the sandbox: each is refused what it tries, leaves nothing behind, and cannot say that its tests have passed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sandboxed import require_sandbox_or_skip

from perturbjax.errors import InputError
from perturbjax.tasks import sandbox
from perturbjax.tasks.sandbox import Limits, run_tests

TIGHT = Limits(cpu_s=1, wall_s=4.0)


EVERYWHERE = "for d in range(3, 64):\n    try:\n        {}\n    except OSError:\n        pass"
"""Tries something with every descriptor that may be open, that of the reply among them."""


@pytest.fixture(autouse=True)
def available():
    require_sandbox_or_skip()


def test_programs_pass_and_fail_by_their_tests():
    program = "import math, re, heapq, collections, hashlib\ndef add(a, b):\n    print('noise')\n    return a + b\n"
    assert run_tests(program, "assert add(1, 2) == 3").passed
    assert run_tests("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 1\n", "assert P() == P(1)").passed
    failed = run_tests(program, "assert add(1, 2) == 4, 'no sum'")
    assert (failed.passed, failed.reason) == (False, "failed AssertionError: no sum")
    assert run_tests("def add(:", "").reason.startswith("failed SyntaxError")
    assert run_tests("", "add(1, 2)").reason == "failed NameError: name 'add' is not defined"
    assert run_tests("raise ValueError('red \\x1b[31m\\n' + 'x' * 10**6)", "").reason.startswith("failed ValueError: red \\x1b[31m xxx")
    assert "200000 characters" in run_tests(" " * 200_001, "").reason


def test_a_run_takes_little_time():
    run_tests("", "")
    start = time.perf_counter()
    assert all(run_tests("def f(x):\n    return x", f"assert f({n}) == {n}").passed for n in range(5))
    assert (time.perf_counter() - start) / 5 < 0.5  # 0.03 s where the machine is idle


# What must be refused by the kernel. HOME, PARENT, PORT and FILE stand for things of the test.
REFUSED = {
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()",
    "new session": "import os; os.setsid()",
    "other program": "import subprocess; subprocess.run(['true'])",
    "exec": "import os, sys; os.execv('/bin/sh', ['sh'])",
    "kill parent": "import os, signal; os.kill(PARENT, signal.SIGKILL)",
    "kill group": "import os, signal; os.killpg(0, signal.SIGKILL)",
    "kill all": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "read passwd": "open('/etc/passwd')",
    "read secret": "open('HOME/secret')",
    "read by descriptor": "import os; d = os.open('HOME', os.O_PATH); os.open('secret', os.O_RDONLY, dir_fd=d)",
    "list home": "import os; os.listdir('HOME')",
    "read parent's environment": "open('/proc/PARENT/environ')",
    "read own environment": "open('/proc/self/environ')",
    "read parent's memory": "open('/proc/PARENT/mem', 'rb')",
    "read site-packages": f"open({pytest.__file__!r})",
    "read perturbjax": f"open({sandbox.__file__!r})",
    "write": "open('HOME/new', 'w')",
    "write here": "open('new', 'w')",
    "write temporary": "open('/tmp/new_by_a_hostile_program', 'w')",
    "write to the standard library": "import os; open(os.__file__, 'a')",
    "truncate the standard library": "import os; os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "write to shared memory": "open('/dev/shm/new', 'w')",
    "temporary file": "import os; os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "remove": "import os; os.remove('HOME/secret')",
    "remove tree": "import shutil; shutil.rmtree('HOME')",
    "rename": "import os; os.rename('HOME/secret', 'HOME/other')",
    "truncate": "import os; os.truncate('HOME/secret', 0)",
    "mode": "import os; os.chmod('HOME/secret', 0o777)",
    "owner": "import os; os.chown('HOME/secret', 0, 0)",
    "times": "import os; os.utime('HOME/secret')",
    "attribute": "import os; os.setxattr('HOME/secret', 'user.x', b'')",
    "link": "import os; os.link('HOME/secret', 'HOME/link')",
    "symlink": "import os; os.symlink('HOME/secret', 'HOME/link')",
    "folder": "import os; os.mkdir('HOME/folder')",
    "connect": "import socket; socket.create_connection(('127.0.0.1', PORT))",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "socket pair": "import socket; socket.socketpair()",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "more time": "import resource; resource.prlimit(0, resource.RLIMIT_CPU, (-1, -1))",
    "lower priority of others": "import os; os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
    "signals by fcntl": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, PARENT)",
    "user": "import os; os.setuid(0)",
    "root": "import os; os.chroot('/')",
    "namespace": "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.unshare(0x10000000):\n    raise PermissionError(ctypes.get_errno())",
}
# By number, on both architectures alike or by the machine's own.
CALLS = {
    **{"io_uring_setup": (425, 425), "pidfd_open": (434, 434), "openat2": (437, 437), "clone3": (435, 435), "landlock": (444, 444)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "memfd_create": (319, 279), "bpf": (321, 280), "mount": (165, 40)},
    **{"seccomp": (317, 277), "prctl": (157, 167), "open_by_handle_at": (304, 265), "perf_event_open": (298, 241), "shmget": (29, 194)},
    **{"keyctl": (250, 219), "userfaultfd": (323, 282), "kexec_load": (246, 104), "settimeofday": (164, 170), "reboot": (169, 142)},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("the user's")
    return tmp_path


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_must_not_do_is_refused(name, home, listener):
    before = home.stat().st_mode, sorted(home.iterdir()), (home / "secret").stat().st_mtime_ns
    program = REFUSED[name].replace("HOME", str(home)).replace("PARENT", str(os.getpid())).replace("PORT", str(listener.getsockname()[1]))
    verdict = run_tests(program, "", TIGHT)
    assert not verdict.passed
    assert verdict.reason.startswith(("failed PermissionError", "failed ValueError: not allowed")), verdict
    assert (home.stat().st_mode, sorted(home.iterdir()), (home / "secret").stat().st_mtime_ns) == before
    assert (home / "secret").read_text() == "the user's"
    assert not Path("/tmp/new_by_a_hostile_program").exists()
    with pytest.raises(BlockingIOError):  # nobody has called
        listener.accept()


def test_system_calls_that_are_not_listed_are_refused():
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: row[column] for name, row in CALLS.items()}
    tests = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {numbers}.items():
    ctypes.set_errno(0)
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM, name
"""
    assert run_tests("", tests).passed


def test_threads_are_refused():
    assert "can't start new thread" in run_tests("import threading; threading.Thread(target=print).start()", "").reason


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert run_tests("import os, sys", "assert 'API_KEY' not in os.environ and '/somewhere' not in sys.path").passed
    assert "LC_CTYPE" in run_tests("import os", "raise ValueError(sorted(os.environ))").reason  # which Python itself sets


def test_descriptors_of_the_parent_are_closed(home):
    with open(home / "secret") as secret:
        os.set_inheritable(secret.fileno(), True)
        tests = f"import os\n{EVERYWHERE.format('os.fstat(d); found.append(d)')}\nassert len(found) == 1"  # the one for the reply
        assert run_tests("found = []", tests).passed


ENDLESS = {
    "while True:\n    pass": "it took more than 1 s of CPU time",
    "from signal import *\nfor s in (1, 2, 15, 24):\n    signal(s, SIG_IGN)\nwhile True:\n    print('x' * 10**6)": "it took more than 1 s",
    "import time\ntime.sleep(60)": "it took more than 0.5 s",
    "import os\nos.closerange(0, 64)\nwhile True:\n    pass": "it took more than 0.5 s",
    "x = bytearray(10 * 2**30)": "failed MemoryError",
    "x = []\nwhile True:\n    x.append(bytearray(2**20))": "failed MemoryError",
    # Python 3.13 runs out of stack; before it, the bound on CPU time may be reached first.
    "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()": ("it ended before its tests did", "it took more than 1 s"),
    "import ctypes\nctypes.string_at(0)": "it ended before its tests did (signal 11)",
    f"import os\n{EVERYWHERE.format('while True: os.write(d, bytes(65536))')}": "\\x00",
}


@pytest.mark.parametrize("program", ENDLESS)
def test_work_is_bounded(program):
    start = time.monotonic()
    reason = ENDLESS[program]
    verdict = run_tests(program, "", Limits(cpu_s=1, wall_s=0.5 if "0.5" in reason else 4.0, memory=2**27))
    assert not verdict.passed and verdict.reason.startswith(reason)
    assert time.monotonic() - start < 10


FAKES = {
    "leave": "import os; os._exit(0)",
    "exit": "import sys; sys.exit(0)",
    "exit at the end": "import atexit, os; atexit.register(os._exit, 0); raise SystemExit",
    "interrupt": "raise KeyboardInterrupt",
    "say so": f"print('passed')\nimport os\n{EVERYWHERE.format('os.write(d, bytes(16).hex().encode())')}",
    "no assertion error": "import builtins; builtins.AssertionError = Warning; AssertionError = Warning",
    "patched calls": "import os; os.write = lambda *a: 0; os._exit = lambda *a: None",
    "patched exec": "import builtins; builtins.exec = builtins.compile = lambda *a: None; builtins.BaseException = Warning",
    "trace": "import sys; sys.settrace(lambda *a: None); sys.excepthook = lambda *a: None",
    "optimized": "import sys; sys.flags = None; __debug__2 = False",
    "a subclass that lies": "class E(AssertionError):\n    def __str__(self):\n        raise SystemExit(0)\ndef f():\n    raise E",
    "rude finalizer": "import os\nclass A:\n    def __del__(self):\n        os._exit(0)\na = A()",
}


@pytest.mark.parametrize("name", FAKES)
def test_success_cannot_be_faked_by(name):
    assert not run_tests(FAKES[name], "if 'f' in globals():\n    f()\nassert False", TIGHT).passed


def test_what_the_sandbox_cannot_tell():
    """Tests that compare trust the program's objects: it runs in one process with them. NOTES.md says so."""
    assert run_tests("class Yes:\n    __eq__ = lambda *_: True\ndef f(x):\n    return Yes()", "assert f(1) == 2").passed


def test_no_process_is_left():
    reason = run_tests("import os, signal\nsignal.signal(15, signal.SIG_IGN)\nraise ValueError(os.getpid())", "").reason
    with pytest.raises(ProcessLookupError):
        os.kill(int(reason.split()[-1]), 0)


def test_no_process_outlives_a_killed_parent():
    code = f"""
import sys, types
package = types.ModuleType("perturbjax"); package.__path__ = [{str(Path(sandbox.__file__).parents[1])!r}]  # without the imports of all
sys.modules["perturbjax"] = package
from perturbjax.tasks.sandbox import require_sandbox, run_tests
require_sandbox()
print(flush=True)
run_tests("import time; time.sleep(60)", "")
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    with parent:
        assert parent.stdout is not None and parent.stdout.readline()
        deadline = time.monotonic() + 20
        child = None
        while child is None and time.monotonic() < deadline:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
            child = int(children[0]) if children else None
        assert child is not None
        time.sleep(0.3)
        assert _alive(child)
        parent.kill()
    while (alive := _alive(child)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive


def _alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_platform_without_the_locks_is_refused(monkeypatch, tmp_path):
    source = sandbox._PROCESS.read_text()
    for lock, complaint in {
        "    _restrict_files()\n": "('open',) was not refused",
        "    _restrict_calls()\n": "was not refused",
        '    reply = _run(request["program"], request["tests"]) or request["token"]\n': "it ended before its tests did (exit code 0)",
    }.items():
        weak = tmp_path / "weak.py"
        assert lock in source
        weak.write_text(source.replace(lock, "    pass\n"))
        monkeypatch.setattr(sandbox, "_PROCESS", weak)
        with pytest.raises(InputError, match="generated code runs only in a sandbox") as caught:
            sandbox.require_sandbox.__wrapped__()
        assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_lock_that_is_missing_is_named(monkeypatch, tmp_path):
    """A kernel without Landlock answers "not implemented": here a system call that no kernel has stands for it."""
    ran = tmp_path / "ran"
    source = sandbox._PROCESS.read_text().replace(
        "_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444", "_CREATE_RULESET, _ADD_RULE, _ = 4444"
    )
    (tmp_path / "old.py").write_text(source)
    monkeypatch.setattr(sandbox, "_PROCESS", tmp_path / "old.py")
    monkeypatch.setattr(sandbox, "require_sandbox", sandbox.require_sandbox.__wrapped__)
    with pytest.raises(InputError, match=r"not to be had here \(cannot Landlock: Function not implemented\)"):
        run_tests(f"open({str(ran)!r}, 'w')", "")
    assert not ran.exists()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match=r"\(this is darwin\); it needs Linux 5.13"):
        run_tests("", "")


def test_an_interrupted_run_leaves_no_process(monkeypatch):
    started = []
    real = subprocess.Popen

    def remembered(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        run_tests("import time; time.sleep(60)", "")
    signal.signal(signal.SIGALRM, before)
    assert started[-1].returncode == -signal.SIGKILL
