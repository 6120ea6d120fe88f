"""Compiled programs that run half as many candidates together where memory is short."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from perturbjax import _compat
from perturbjax.inference.programs import Kind
from perturbjax.noise import Candidate, Noise
from perturbjax.scoring import ChunkProgram
from perturbjax.sharding import ShardedParams

_log = logging.getLogger(__name__)


class HalvingPrograms:
    """A ``ChunkProgram`` of each kind, made at its first use.

    Args:
        function: the function of one candidate that a kind runs.
        params, noise, mesh, max_candidates: as ``ChunkProgram`` takes them; a kind without a strategy makes no noise.
        in_flight: candidates evaluated together on each device, until memory is short.
    """

    def __init__(
        self,
        function: Callable[[Kind], Callable[..., Any]],
        params: ShardedParams,
        noise: Noise,
        mesh: Mesh,
        max_candidates: int,
        in_flight: int,
    ):
        self._function, self._params, self._noise, self._mesh = function, params, noise, mesh
        self._max_candidates, self.in_flight = max_candidates, in_flight
        self._made: dict[Kind, ChunkProgram] = {}

    def __getitem__(self, kind: Kind) -> ChunkProgram:
        if kind not in self._made:
            noise, strategy = (None, "copy") if kind.strategy is None else (self._noise, kind.strategy)
            self._made[kind] = ChunkProgram(
                self._function(kind), self._params, noise, self._mesh, self._max_candidates, self.in_flight, strategy
            )
        return self._made[kind]

    @property
    def traces(self) -> int:
        """How often these programs were traced so far."""
        return sum(program.traces for program in self._made.values())

    def rebase(self, params: ShardedParams) -> None:
        """As ``ChunkProgram.rebase``, all of them and those to come."""
        self._params = params
        for program in self._made.values():
            program.rebase(params)

    def start(self, kind: Kind, candidates: Candidate, arrays: dict[str, np.ndarray]) -> Callable[[], Any]:
        """Runs one program for all candidates, with half as many in flight where memory is short; what is returned waits for the results.

        Raises:
            MemoryError: it is short with one; from what is returned too.
        """
        candidates = jax.tree.map(np.asarray, candidates)

        def start() -> Callable[[], Any]:
            return self[kind].start(candidates, arrays)

        running = self._or_halved(start)

        def results() -> Any:
            nonlocal running
            while running is None or (found := self._or_halved(running)) is None:
                running = self._or_halved(start)
            return found

        return results

    def _or_halved(self, call: Callable[[], Any]) -> Any | None:
        """What the call gives; where memory is short for it, None, and from then on half as many candidates are in flight."""
        try:
            return call()
        except jax.errors.JaxRuntimeError as error:
            # All devices hold the same, so all processes are short of memory alike and go on alike.
            if not _compat.is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        if self.in_flight == 1:
            raise MemoryError(f"one candidate at a time does not fit on a device ({reason}); shard the model over more of them: --mesh")
        _log.warning("out of memory with %d candidates in flight, going on with %d (%s)", self.in_flight, self.in_flight // 2, reason)
        self.in_flight //= 2
        self._made.clear()  # they were compiled for another number, and hold memory
        return None
