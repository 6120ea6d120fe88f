"""The queue: requests wait a moment for others, and are answered together by one thread, the only one that runs the model."""

import queue
import threading
import time
import traceback
from collections.abc import Callable

from perturbjax.serve.config import Limits
from perturbjax.serve.metrics import Metrics
from perturbjax.serve.work import Answering, Piece, Work


class QueueFull(Exception):
    """As many requests wait as may."""


class Batcher:
    """Answers requests in batches, in the order in which they came.

    Args:
        answering: what answers.
        limits: how many wait, and are answered together.
        metrics: told what was done.
        note: told why a batch failed.
    """

    def __init__(self, answering: Answering, limits: Limits, metrics: Metrics, note: Callable[[str], None]):
        self._answering, self._limits, self._metrics, self._note = answering, limits, metrics, note
        self._waiting: queue.Queue[Work | None] = queue.Queue(limits.max_queue)
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="perturbjax-serve", daemon=True)
        metrics.queue_depth.set_function(self._waiting.qsize)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, work: Work) -> None:
        """Takes a request in.

        Raises:
            QueueFull: the queue is full.
        """
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            raise QueueFull from None

    def stop(self) -> None:
        """Answers what waits, then ends."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._collect()) is not None:
            live = [work for work in batch if not work.cancelled]
            if live:
                self._answer(live)

    def _answer(self, batch: list[Work]) -> None:
        self._metrics.batch_size.observe(len(batch))
        try:
            self._metrics.generated_tokens.inc(self._answering.answer(batch))
        except Exception:
            # One batch is lost; the next may be well. Clients are told that it failed, not how.
            self._note("perturbjax: a batch failed:\n" + traceback.format_exc().rstrip())
            for work in batch:
                work.emit(Piece(ended="error"))

    def _collect(self) -> list[Work] | None:
        """The next batch: the first that waits, and what comes within the wait. None at the end."""
        first = None if self._ending else self._waiting.get()
        if first is None:
            return None
        batch, deadline = [first], time.monotonic() + self._limits.max_wait_ms / 1000
        while len(batch) < self._limits.max_batch:
            try:
                work = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if work is None:
                self._ending = True
                break
            batch.append(work)
        return batch
