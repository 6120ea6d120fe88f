"""What every chapter keeps, whatever it computes: its run directory is the same from Python, after a failure, and when asked again.

A chapter's test module subclasses ``ChapterBattery`` and says how the chapter is run.
"""

import contextlib
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from perturbjax.cli import main
from perturbjax.errors import InputError
from perturbjax.runs.state import RunState


def call(arguments: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@contextlib.contextmanager
def failing_commits(after: int, error: BaseException | None = None) -> Iterator[None]:
    """Until the block ends, every commit of a state after so many fails: with Ctrl-C when no error is given."""
    commit, count = RunState.commit, itertools.count()

    def failing(state: RunState, tree: Any, record: Any) -> None:
        if next(count) >= after:
            raise error or KeyboardInterrupt
        commit(state, tree, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunState, "commit", failing)
        yield


class ChapterBattery:
    compared: tuple[str, ...]
    """Files that are equal byte for byte, however the run came to its end."""
    commits: int
    """How often the run of ``arguments`` commits its state."""
    stopped_with: tuple[str, ...] = ()
    """Further words of the command of the run that is stopped, which change none of the files that are compared."""

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Writes what the runs read."""
        raise NotImplementedError

    @classmethod
    def arguments(cls, folder: Path, out: Path) -> list[str]:
        """The command of the run."""
        raise NotImplementedError

    @classmethod
    def run(cls, folder: Path, out: Path, resume: bool = False) -> Any:
        """The same run from Python."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("chapter")
        cls.prepare(folder)
        assert main(cls.arguments(folder, folder / "run")) == 0
        return folder

    def content(self, run: Path) -> dict[str, bytes]:
        return {name: (run / name).read_bytes() for name in self.compared}

    def test_python_gives_what_the_command_gives_and_prints_nothing(self, finished, tmp_path, capfd):
        capfd.readouterr()
        results = self.run(finished, tmp_path / "run")
        assert capfd.readouterr() == ("", "")
        assert self.content(tmp_path / "run") == self.content(finished / "run")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in (finished / "run").iterdir()}
        written = json.loads((tmp_path / "run" / "results.json").read_text())
        assert json.loads(json.dumps(asdict(results))) == written

    def test_a_second_call_is_refused_without_resume_and_shows_the_run_with_it(self, finished, capsys):
        arguments = self.arguments(finished, finished / "run")
        before = {path: path.read_bytes() for path in (finished / "run").glob("*.*")}
        code, out, err = call(arguments, capsys)
        assert code == 2 and out == "" and "already holds a run; continue it with --resume" in err
        with pytest.raises(InputError, match="already holds a run"):
            self.run(finished, finished / "run")
        code, out, err = call([*arguments, "--resume"], capsys)
        assert code == 0 and str(finished / "run" / "report.html") in out
        assert not any(line.startswith(("search", "train")) for line in err.splitlines())  # nothing was done again
        self.run(finished, finished / "run", resume=True)
        assert {path: path.read_bytes() for path in (finished / "run").glob("*.*")} == before

    def test_the_report_is_written_again_to_the_same_bytes(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        (run / "report.html").unlink()
        shutil.rmtree(run / "plots")
        code, out, err = call(["report", str(run)], capsys)
        assert code == 0 and err == "" and out.endswith(f"\n\nreport  {run / 'report.html'}\n") and len(out.splitlines()) > 8
        for path in sorted((finished / "run").rglob("*")):
            assert path.is_dir() or (run / path.relative_to(finished / "run")).read_bytes() == path.read_bytes()
        (run / "results.json").unlink()
        code, out, err = call(["report", str(run)], capsys)
        again = f"perturbjax {self.arguments(finished, run)[0]} ... --out {run} --resume"
        assert (code, out) == (2, "") and err.endswith(f"no results.json, the run has not finished; continue it with: {again}\n")

    @pytest.fixture(scope="class")
    @classmethod
    def stopped(cls, finished, tmp_path_factory) -> tuple[Path, list[tuple[int, str]]]:
        """A run that failed, was interrupted and was continued to its end; exit code and stderr of each of the three commands."""
        run, said = tmp_path_factory.mktemp("stopped") / "run", []
        arguments = [*cls.arguments(finished, run), *cls.stopped_with]
        failures = (failing_commits(cls.commits // 2, OSError(28, "No space left on device")), failing_commits(0), contextlib.nullcontext())
        for failing, resume in zip(failures, ([], ["--resume"], ["--resume"]), strict=True):
            err = io.StringIO()
            with failing, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
                said.append((main([*arguments, *resume]), err.getvalue()))
        return run, said

    def test_a_failure_says_that_the_run_is_intact_and_it_ends_the_same(self, finished, stopped):
        run, ((failed, err), (interrupted, later), (ended, last)) = stopped
        assert failed == 1 and "Traceback" not in err
        assert err.splitlines()[-1] == (
            "perturbjax: failed: OSError: [Errno 28] No space left on device; "
            f"what {run} had committed is intact; continue with: perturbjax {self.arguments(finished, run)[0]} ... --out {run} --resume"
        )
        assert interrupted == 130 and "interrupted; what" in later.splitlines()[-1]
        assert ended == 0 and "continuing the run" in last
        assert self.content(run) == self.content(finished / "run")
