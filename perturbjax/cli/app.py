"""The ``perturbjax`` command: parse a dataclass, call, print, exit.

Exit codes: 0 done, 2 bad input (one line on stderr), 1 failure, 69 another process of the run has died or cannot be reached, 75 told
to stop by SIGTERM during a run (both: ``perturbjax.cluster``), 130 interrupted.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from perturbjax._version import __version__
from perturbjax.caulking import Config as CaulkingConfig
from perturbjax.cli.arguments import UsageError, flag_names, parse, with_flags
from perturbjax.cli.bench import BenchConfig, run_bench
from perturbjax.cli.calibrate import CalibrateConfig, run_calibrate
from perturbjax.cli.caulking import run_caulking
from perturbjax.cli.compare import CompareConfig, run_compare
from perturbjax.cli.consolidate import run_consolidate
from perturbjax.cli.evaluate import EvaluateConfig, run_evaluate
from perturbjax.cli.export import ExportConfig, run_export
from perturbjax.cli.ivl import run_ivl
from perturbjax.cli.plan import PlanConfig, run_plan
from perturbjax.cli.predict import PredictConfig, run_predict
from perturbjax.cli.randopt import run_randopt
from perturbjax.cli.report import ReportConfig, run_report
from perturbjax.cli.scores import ScoresConfig, run_scores
from perturbjax.cli.select import SelectConfig, run_select
from perturbjax.cli.serve import ServeConfig, run_serve
from perturbjax.cli.study import StudyConfig, run_study
from perturbjax.cli.tasks import TasksConfig, run_tasks
from perturbjax.cli.vpretrain import run_vpretrain
from perturbjax.consolidate import Config as ConsolidateConfig
from perturbjax.errors import InputError, shortened
from perturbjax.ivl import Config as IvlConfig
from perturbjax.randopt import Config
from perturbjax.runs.console import Console
from perturbjax.vpretrain import Config as VpretrainConfig

PROG = "perturbjax"

DESCRIPTION = """\
What lies around a pretrained model's weights. randopt: sample seeded perturbations, score them, keep the best and let them vote.
ivl: teach a small value network what demonstrations do to a model's logits, and add them to other models.
vpretrain: pretrain a model further on targets that a designer chooses, steered by a little feedback.
caulking: measure how many labeled examples an adapter of a model needs.

- a first run: perturbjax randopt
- on your own data: perturbjax randopt --task questions.jsonl --population 200 --top-k 10
- after a kill: the same command with --resume
- one model in place of the members: perturbjax consolidate RUN --by merge
- what a task asks, and how it grades: perturbjax tasks sst2
- a sigma for a model: perturbjax calibrate
- the method at work on a toy: perturbjax study signals

RUN, for the other commands, is the run directory that one of these prints. Each command explains itself: perturbjax randopt --help"""

COMMANDS: dict[str, tuple[type, Callable[[Any, Console], None]]] = {
    "randopt": (Config, run_randopt),
    "ivl": (IvlConfig, run_ivl),
    "vpretrain": (VpretrainConfig, run_vpretrain),
    "caulking": (CaulkingConfig, run_caulking),
    "evaluate": (EvaluateConfig, run_evaluate),
    "predict": (PredictConfig, run_predict),
    "export": (ExportConfig, run_export),
    "report": (ReportConfig, run_report),
    "serve": (ServeConfig, run_serve),
    "select": (SelectConfig, run_select),
    "scores": (ScoresConfig, run_scores),
    "compare": (CompareConfig, run_compare),
    "consolidate": (ConsolidateConfig, run_consolidate),
    "calibrate": (CalibrateConfig, run_calibrate),
    "study": (StudyConfig, run_study),
    "tasks": (TasksConfig, run_tasks),
    "bench": (BenchConfig, run_bench),
    "plan": (PlanConfig, run_plan),
}


_OF_A_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO, errno.ENOENT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(levelname)s: %(message)s")
    flags: set[str] = set()
    try:
        if arguments == ["--version"]:
            console.line(f"{PROG} {__version__}")
            return 0
        config = parse({name: kind for name, (kind, _) in COMMANDS.items()}, arguments, PROG, DESCRIPTION)
        call, flags = next((call, flag_names(kind)) for kind, call in COMMANDS.values() if type(config) is kind)
        call(config, console)
    except (UsageError, InputError) as error:
        console.note(f"{PROG}: error: {shortened(with_flags(str(error), flags))}")
        return 2
    except KeyboardInterrupt as error:
        _explain("interrupted", error, console)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        # Whoever reads our output (head, less) has seen enough. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_A_NAME:
            console.note(f"{PROG}: error: {shortened(f'{error.filename}: {error.strerror}')}; give another path")
            return 2
        if not _is_environment(error):
            # Not the user's doing: whoever mends it needs the whole of it.
            console.note("".join(traceback.format_exception(error)).rstrip())
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        if isinstance(error, ModuleNotFoundError):
            reason += "; pip install 'perturbjax[demo]' has everything that the commands use"
        _explain(f"failed: {type(error).__name__}: {shortened(reason)}", error, console)
        return 1
    return 0


def _explain(what: str, error: BaseException, console: Console) -> None:
    # Our notes are one line each; those of jax, about its tracebacks, are paragraphs.
    notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]
    console.note("; ".join([f"{PROG}: {what}", *notes]))


def _is_environment(error: BaseException) -> bool:
    """A full disk, too little memory, a file that went away, a package that is not installed, a training that diverged: nothing that a
    traceback explains better."""
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _OF_THE_DISK
    return isinstance(error, (ModuleNotFoundError, MemoryError, FloatingPointError))
