"""What the command line shows: lines on stdout, progress and warnings on stderr."""

import sys
import time
from typing import Any, Self

from perturbjax.errors import printable

_PLAIN_INTERVAL_S = 15.0  # between two plain progress lines, so that a log of a long run stays readable


class Progress:
    """What a run reports about itself while it works. This one prints nothing (``SILENT``, a run from Python); ``Console`` does."""

    def line(self, text: str = "") -> None:
        """One line of the outcome."""

    def note(self, text: str) -> None:
        """One line about the work itself."""

    def bar(self, label: str, total: int, done: int = 0, unit: str = "step") -> "Bar":
        """The progress of one stage, as a context manager."""
        return Bar(self, label, total, done, unit, drawn=False)


SILENT = Progress()


class Console(Progress):
    """The one place that prints; what files and users say is shown with control characters escaped."""

    def line(self, text: str = "") -> None:
        """One line for the person who asked, on stdout."""
        print(printable(text), flush=True)

    def note(self, text: str) -> None:
        """One line about the work itself, on stderr."""
        print(printable(text), file=sys.stderr, flush=True)

    def bar(self, label: str, total: int, done: int = 0, unit: str = "step") -> "Bar":
        """A bar when stderr is a terminal, plain lines otherwise."""
        return Bar(self, label, total, done, unit, drawn=sys.stderr.isatty())


class Bar:
    """Progress of one stage; ``update`` takes the total done so far and figures to show beside it."""

    def __init__(self, console: Progress, label: str, total: int, done: int, unit: str, drawn: bool):
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._started, self._from, self._done = time.monotonic(), done, done
        self._last = self._started
        self._bar: Any = None
        if drawn:
            from tqdm import tqdm

            self._bar = tqdm(desc=label, total=total, initial=done, unit=unit, file=sys.stderr, dynamic_ncols=True, smoothing=0.1)

    def update(self, done: int, **figures: str) -> None:
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(step)
        elif (now := time.monotonic()) - self._last >= _PLAIN_INTERVAL_S or done >= self._total:
            self._last = now
            elapsed = now - self._started
            rate = (done - self._from) / elapsed if elapsed > 0 else 0.0
            parts = [f"{done}/{self._total}"]
            if rate > 0 and done < self._total:
                parts.append(f"{rate:.2f} {self._unit}s/s, {duration((self._total - done) / rate)} left")
            elif done >= self._total:
                parts.append(f"in {duration(elapsed)}")
            parts += [f"{name} {value}" for name, value in figures.items()]
            self._console.note(f"{self._label}: {', '.join(parts)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """``40 s``, ``12 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
