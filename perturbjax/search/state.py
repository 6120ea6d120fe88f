"""The score matrix of a run, committed by Orbax after every chunk and verified before it is believed."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from perturbjax.errors import InputError
from perturbjax.search.identity import Identity, identity_digest

_UNFINISHED = ".orbax-checkpoint-tmp"
_KEPT = 2  # the last commit and the one before, so that damage to the last costs one chunk and not the run


@dataclass
class ScoreTable:
    """What is known of N candidates on D examples.

    Attributes:
        scores: (N, D) float32, NaN where not scored.
        tokens: (N, R) int64, tokens put through the model for each, by round of the race.
        nonfinite: how many candidates had NaN or infinite logits, by round (they score 0 on its examples).
        seconds: time spent scoring, over all processes that worked on the run.
    """

    scores: np.ndarray
    tokens: np.ndarray
    nonfinite: list[int]
    seconds: float = 0.0

    @classmethod
    def empty(cls, candidates: int, examples: int, rounds: int = 1) -> Self:
        return cls(
            scores=np.full((candidates, examples), np.nan, np.float32),
            tokens=np.zeros((candidates, rounds), np.int64),
            nonfinite=[0] * rounds,
        )

    @property
    def done(self) -> np.ndarray:
        """(N,) bool, which candidates are scored on at least the examples of the first round."""
        return ~np.isnan(self.scores[:, 0])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"scores": self.scores, "tokens": self.tokens}

    def checksum(self) -> str:
        """sha256 over names, types, shapes and bytes of everything here."""
        hasher = hashlib.sha256(json.dumps([self.nonfinite, self.seconds]).encode())
        for name, array in sorted(self.arrays().items()):
            hasher.update(f"{name} {array.dtype} {array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).data)
        return hasher.hexdigest()


@dataclass
class RunState:
    """The committed state of a run: use as a context manager, read ``table``, change it, ``commit()``.

    Attributes:
        table: as last committed, plus what the caller changed since.
        step: number of commits so far.
        warnings: what had to be worked around while opening, one line each.
    """

    directory: Path
    identity: Identity
    table: ScoreTable
    step: int = 0
    warnings: list[str] = field(default_factory=list)
    _manager: Any = None

    @classmethod
    def open(cls, directory: Path, candidates: int, examples: int, identity: Identity, rounds: int = 1) -> "RunState":
        """Start a state, or restore the newest commit that is whole.

        Args:
            directory: ``state/`` of the run; made if it does not exist.
            candidates: N.
            examples: D.
            identity: of the run; a state of another run is refused.
            rounds: R, of its race.

        Raises:
            InputError: there are commits and none is whole, or they belong to another run. Damage is never read as data.
        """
        import orbax.checkpoint as ocp

        several: dict[str, Any] = {}
        if jax.process_count() > 1:
            # Process 0 keeps the state. Orbax would wait for all of them otherwise, and lets none of some make the directory.
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="state")
            several = {"multiprocessing_options": alone, "create": False}
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False, **several)
        if directory.exists() and not directory.is_dir():
            raise _damaged(directory, "it is not a directory")
        if directory.exists():
            # What a kill in mid-commit leaves. Orbax's own cleaning up misses a step that was whole but not yet renamed.
            for leftover in directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(leftover)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            manager = ocp.CheckpointManager(directory.absolute(), options=options)
        except Exception as error:
            raise _damaged(directory, f"it cannot be opened ({_first_line(error)})") from error
        state = cls(directory, identity, ScoreTable.empty(candidates, examples, rounds), _manager=manager)
        try:
            state._restore()
        except BaseException:
            manager.close()
            raise
        return state

    def commit(self) -> None:
        """Write the table as the next step. After this returns, a kill cannot lose it; during it, the step before stands.

        Raises:
            OSError: it could not be written in whole (a full disk); the commits before stand.
        """
        import orbax.checkpoint as ocp

        step = self.step + 1
        record = {
            "step": step,
            "identity": identity_digest(self.identity),
            "shape": list(self.table.scores.shape),
            "nonfinite": self.table.nonfinite,
            "seconds": self.table.seconds,
            "sha256": self.table.checksum(),
        }
        items = {name: ocp.args.StandardSave({name: array}) for name, array in self.table.arrays().items()}
        arguments = ocp.args.Composite(**items, record=ocp.args.JsonSave(record))
        try:
            if not self._manager.save(step, args=arguments, force=True):
                raise OSError(f"Orbax did not save step {step}")
        except Exception as error:
            # Orbax and TensorStore report a full disk in several exception types; all mean that this step is not there.
            raise OSError(f"{self.directory}: chunk {step} could not be committed ({_first_line(error)})") from error
        self.step = step

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _restore(self) -> None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        known = {str(step) for step in steps}
        strange = [entry.name for entry in self.directory.iterdir() if entry.name not in known]
        if strange:
            raise _damaged(self.directory, f"{sorted(strange)[0]} is not part of a state")
        reasons: list[str] = []
        for step in steps:
            try:
                self.table = self._load(step)
            except InputError:
                raise
            except Exception as error:
                reasons.append(f"step {step}: {_first_line(error)}")
                continue
            for newer in (s for s in steps if s > step):
                # Out of the way of the commit that will take its number.
                self._manager.delete(newer)
            self.step = step
            if reasons:
                why = "; ".join(reasons)
                self.warnings.append(f"{self.directory}: damaged ({why}); continuing from step {step}, the chunk after it is scored again")
            return
        if reasons:
            raise _damaged(self.directory, "; ".join(reasons))

    def _load(self, step: int) -> ScoreTable:
        import orbax.checkpoint as ocp

        record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if record["identity"] != identity_digest(self.identity):
            raise InputError(f"{self.directory}: the state of another run; give the --out it came from, or start anew in another --out")
        empty = ScoreTable.empty(*self.table.scores.shape, rounds=self.table.tokens.shape[1])
        if record["step"] != step or record["shape"] != list(empty.scores.shape):
            raise ValueError(f"record of step {record['step']} with scores of shape {record['shape']}")
        arrays = {}
        for name, array in empty.arrays().items():
            # One item at a time: when one of several concurrent reads fails, the others go on behind a closed event loop and
            # complain there.
            arguments = ocp.args.Composite(**{name: ocp.args.StandardRestore({name: array})})
            found = np.array(self._manager.restore(step, args=arguments)[name][name])
            if (found.shape, found.dtype) != (array.shape, array.dtype):
                raise ValueError(f"{name} is {found.dtype}{found.shape}, {array.dtype}{array.shape} is required")
            arrays[name] = found
        table = ScoreTable(**arrays, nonfinite=record["nonfinite"], seconds=record["seconds"])
        if table.checksum() != record["sha256"]:
            raise ValueError("the checksum does not match")
        return table


def _damaged(directory: Path, reason: str) -> InputError:
    advice = f"delete {directory.parent} to start anew, or restore it from a copy"
    return InputError(f"{directory}: the saved state is damaged ({reason}); {advice}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
