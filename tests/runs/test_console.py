import pytest

from perturbjax.runs import console as module
from perturbjax.runs.console import Console


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_without_a_terminal_progress_is_a_line_now_and_then_and_one_at_the_end(clock, capsys):
    with Console().bar("search", 100, done=20) as bar:
        for done, moment in ((30, 5.0), (40, 20.0), (41, 21.0), (60, 40.0), (100, 100.0)):
            clock.now = 100.0 + moment
            bar.update(done, best="0.9")
    assert capsys.readouterr().err.splitlines() == [
        "search: 40/100, 1.00 candidates/s, 1 min 00 s left, best 0.9",
        "search: 60/100, 1.00 candidates/s, 40 s left, best 0.9",
        "search: 100/100, in 1 min 40 s, best 0.9",
    ]


def test_on_a_terminal_progress_is_a_bar_with_rate_and_figures(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Console().bar("search", 4) as bar:
        bar.update(2, best="0.9")
        bar.update(4, best="0.9")
    err = capsys.readouterr().err
    assert "search: 100%" in err and "4/4" in err and "candidate" in err and "best=0.9" in err


def test_stages_follow_each_other_and_end_with_the_block(clock, capsys):
    console = Console()
    with console.stages() as on_stage:
        for stage, done in (("prompts", 0), ("prompts", 1), ("prompts", 2), ("samples", 0), ("samples", 1)):
            clock.now += 4
            on_stage(stage, done, 2)
    assert capsys.readouterr().err.splitlines() == ["prompts: 2/2, in 8 s"]
    assert console._stage is None


def test_lines_go_to_stdout_and_notes_to_stderr(capsys):
    Console().line("result")
    Console().note("working")
    assert capsys.readouterr() == ("result\n", "working\n")
