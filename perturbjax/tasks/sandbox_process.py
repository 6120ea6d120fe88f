"""The process in which a generated program and its tests run, started by ``sandbox``: it locks itself in and only then runs them.

It is a script that imports nothing of perturbjax, and little else, so that it starts soon and holds nothing. It reads one request from
stdin, a JSON object with the arguments of ``_lock``, ``program``, ``tests`` and ``token``, and writes one reply to stdout: the token when
the tests have run to their end, else ``failed REASON``; ``cannot REASON`` where it cannot lock itself in, and then nothing has been run.

Three locks of the kernel, none of which needs a privilege or can be taken off again:

- **Resource limits**: CPU time, address space, open files, processes, no file written, no core.
- **Landlock** (Linux 5.13): no file can be opened but those of Python's standard library; ``site-packages`` is none of them.
- **seccomp**: of the system calls, only those pass that a program needs to compute, read and say what it found. All others are refused with
  "operation not permitted": sockets, new processes and threads, signals, opening to write, renaming, removing, changing modes, mounting,
  tracing, io_uring. It is a list of what is allowed, not of what is forbidden, so what a newer kernel adds is refused too.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from types import ModuleType

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of ``_ALLOWED`` and the audit code."""

# Numbers on x86-64 and arm64, None where the call does not exist. Not in the list, though Python uses them: fcntl and ioctl, which can have
# the kernel signal another process; readlink; prlimit, with which root would raise its limits again.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    **{"read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "pread64": (17, 67)},
    **{"stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "getdents64": (217, 61), "getcwd": (79, 17)},
    **{"access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439)},
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"restart_syscall": (219, 128), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123)},
    **{"getpid": (39, 172), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177)},
    **{"clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101)},
    **{"time": (201, None), "gettimeofday": (96, 169), "times": (100, 153), "getrusage": (98, 165)},
    **{"uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94)},
}
_OPENAT = (257, 56)
_NOT_TO_READ = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~getattr(os, "O_DIRECTORY", 0)

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data, little-endian

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ALL_ACCESS, _READ_FILE, _READ_DIR = (1 << 13) - 1, 1 << 2, 1 << 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class CannotLock(Exception):
    """The platform does not have one of the locks."""


def main() -> None:
    """Runs one request and leaves without cleaning up, which would run the program's code again."""
    request = json.loads(sys.stdin.buffer.read())
    replies = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    say, leave = os.write, os._exit  # the program may replace what the modules hold
    try:
        _lock(request["cpu_s"], request["memory"], request["parent"])
        reply = ""
    except (CannotLock, OSError, ValueError) as error:
        reply = f"cannot {error}"
    if not reply:
        reply = _run(request["program"], request["tests"]) or request["token"]
    say(replies, reply.encode(errors="replace")[:300])
    leave(0)


def _run(program: str, tests: str) -> str:
    """Why the tests failed, or "" if all of them ran. Whatever the program raises is a failure, SystemExit too."""
    module = ModuleType("program")
    sys.modules["program"] = module
    execute, anything = exec, BaseException  # which the program may replace
    try:
        checks = compile(tests, "tests", "exec")
        execute(compile(program, "program", "exec"), module.__dict__)
        execute(checks, module.__dict__)
    except anything as error:
        try:
            return f"failed {type(error).__name__}: {error}"
        except anything:
            return "failed"
    return ""


def _lock(cpu_s: int, memory: int, parent: int) -> None:
    """
    Raises:
        CannotLock: a lock is not to be had. Some may be on by then.
    """
    if platform.machine() not in _ARCHITECTURES or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise CannotLock(f"no list of system calls for {platform.machine()}")
    os.chdir("/")
    limits = {
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for limit, values in limits.items():
        resource.setrlimit(limit, values)
    _must(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "a signal at the parent's death")
    if os.getppid() != parent:
        raise CannotLock("it has died already")
    _must(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _restrict_files()
    _restrict_calls()


def _must(result: int, what: str) -> int:
    if result < 0:
        raise CannotLock(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _restrict_files() -> None:
    """Landlock: only the standard library can be read, which is what ``sys.path`` holds under ``-I -S``."""
    handled = struct.pack("Q", _ALL_ACCESS)
    ruleset = _must(_libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0), "Landlock")

    def allow(path: str, access: int) -> None:
        descriptor = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", access, descriptor)
        _must(_libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"Landlock, {path}")
        os.close(descriptor)

    for folder in filter(os.path.exists, sys.path):
        if not os.path.isdir(folder):  # a zip of modules
            allow(folder, _READ_FILE)
            continue
        allow(folder, _READ_DIR)
        for entry in os.scandir(folder):
            if entry.name not in ("site-packages", "dist-packages"):
                allow(entry.path, _READ_FILE | _READ_DIR if entry.is_dir() else _READ_FILE)
    _must(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _restrict_calls() -> None:
    """seccomp: the calls of ``_ALLOWED``, and ``openat`` to read."""
    column, audit = _ARCHITECTURES[platform.machine()]
    numbers = [number for row in _ALLOWED.values() if (number := row[column]) is not None]
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for number in numbers:
        code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code += [(_IF_EQUAL, 1, 0, _OPENAT[column]), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, _THIRD_ARGUMENT)]
    code += [(_IF_ANY_BIT, 0, 1, _NOT_TO_READ), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    words = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(words))
    _must(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


if __name__ == "__main__":
    main()
