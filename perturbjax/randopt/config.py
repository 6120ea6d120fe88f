"""What a search is: one frozen dataclass, checked before anything is loaded or written.

Field names are the flags of ``perturbjax search`` with dashes; the strings below the fields are their help.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perturbjax.cluster.distributed import CLUSTER
from perturbjax.errors import InputError
from perturbjax.randopt.racing import RULES, Race, Rule


@dataclass(frozen=True)
class SearchConfig:
    """Search for good perturbations of a model, let the best vote, and report how they do beside honest controls.

    - the default run: perturbjax search
    - a task of your own: perturbjax search --task questions.jsonl --population 200 --top-k 10
    - arithmetic with random signs as noise: perturbjax search --task arithmetic --noise rademacher --sigmas 0.001,0.002
    - after a kill: the same command with --resume

    Questions are dealt into three splits that never meet: search scores the candidates, select makes every choice (K, sigma, prompt,
    temperature), test is measured once, at the end."""

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a .gguf file, a Hugging Face directory with safetensors, or a hub id."""
    task: str = "sst2"
    """sst2, boolq, rte, arc_easy, mmlu:<subject>, gsm8k, arithmetic, countdown; a .jsonl file with question, answer and optional choices;
    or module:attribute for your own Task."""
    population: int = 48
    """N, the number of candidates sampled and scored."""
    top_k: int = 8
    """K, how many of the best candidates may vote."""
    sigmas: tuple[float, ...] = (0.0005, 0.001, 0.002)
    """Noise scales, comma separated; candidate i takes number i mod their count."""
    noise: Literal["gaussian", "rademacher"] = "gaussian"
    """Distribution of the noise: gaussian as in the paper, or rademacher (one bit a weight, faster)."""
    rank: int | None = None
    """Low-rank noise of this rank on the matrices; without it the noise is full rank."""
    scale: Literal["absolute", "rms", "modular"] = "absolute"
    """What sigma is relative to: nothing (absolute, as in the paper), each leaf's RMS, or a per-module norm."""
    antithetic: bool = False
    """Candidates 2j and 2j+1 share their noise with opposite signs."""
    search_examples: int = 64
    """Examples that score the candidates."""
    select_examples: int = 64
    """Other examples, on which K, sigma, the best prompt and the sampling temperature are chosen."""
    test_examples: int = 256
    """Yet other examples, used once, for the figures that are reported."""
    racing: Rule = "halving"
    """halving: stop the weaker candidates after a slice of the search examples, to save tokens; bounds: stop only those that are very
    likely out; off: score every candidate on every example."""
    seed: int = 0
    """Seed of the noise, the splits and the sampled controls."""
    template: str | None = None
    """Prompt template of the candidates, by name; the task's first when left out."""
    max_new_tokens: int | None = None
    """Generation budget of a generation task, in tokens; the task's own when left out."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; auto is float32 on a CPU, where it is faster, and bfloat16 elsewhere."""
    chunk: int = 4
    """Candidates per compiled call; their scores are committed together. The result does not depend on it."""
    strategy: Literal["auto", "lazy", "copy", "low_rank"] = "auto"
    """How noise meets the weights: lazy (made where a weight is used), copy (one perturbed copy per candidate in flight), low_rank (factors
    beside the shared weights, with --rank), or auto, by a cost model. Results agree to rounding."""
    in_flight: int = 1
    """Candidates held in memory at once, at most chunk. The result does not depend on it."""
    mesh: str | None = None
    """CANDIDATExMODEL, e.g. 64x4: candidates are split over the first axis, each model over the second; all devices by 1 when left out.
    The result does not depend on it."""
    coordinator: str | None = None
    """Of several processes that run this same command: HOST:PORT of process 0, or cluster, where Cloud TPU, GKE or SLURM tell them."""
    num_processes: int | None = None
    """How many processes there are; with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Which of them this is, from 0; with --coordinator HOST:PORT."""
    compile_cache: str = "auto"
    """Where compiled programs are kept for the next command: auto (under ~/.cache/perturbjax), off, or a directory."""
    profile: Path | None = None
    """Directory that gets a jax.profiler trace of a few candidates, to be opened with xprof; they are scored once more for it."""
    out: Path | None = None
    """Run directory, seen by all processes; runs/<task>-<model>-<hash of the settings> when left out."""
    resume: bool = False
    """Continue the run in --out where it stopped; starts it if there is none."""

    def validate(self) -> None:
        """Check every field that can be checked without loading anything.

        Raises:
            InputError: one line naming the flag, its value, what is required.
        """
        _text("--model", self.model)
        _text("--task", self.task)
        for flag, value in (
            ("--population", self.population),
            ("--top-k", self.top_k),
            ("--search-examples", self.search_examples),
            ("--select-examples", self.select_examples),
            ("--test-examples", self.test_examples),
            ("--chunk", self.chunk),
            ("--in-flight", self.in_flight),
        ):
            positive_integer(flag, value)
        for flag, value in (("--rank", self.rank), ("--max-new-tokens", self.max_new_tokens)):
            if value is not None:
                positive_integer(flag, value)
        if self.top_k > self.population:
            raise InputError(f"--top-k {self.top_k}: at most --population {self.population} can be kept; lower one or raise the other")
        if self.population > 2**32:
            raise InputError(f"--population {self.population}: candidate indices are 32-bit; use at most {2**32}")
        if self.antithetic and self.population % 2:
            raise InputError(f"--population {self.population}: antithetic candidates come in pairs; use an even number")
        if self.in_flight > self.chunk:
            raise InputError(f"--in-flight {self.in_flight}: at most --chunk {self.chunk} can be in flight; lower one or raise the other")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: an integer from 0 to {2**32 - 1} is required")
        check_sigmas(self.sigmas)
        one_of("--noise", self.noise, ("gaussian", "rademacher"))
        one_of("--racing", self.racing, RULES)
        one_of("--scale", self.scale, ("absolute", "rms", "modular"))
        one_of("--strategy", self.strategy, ("auto", "lazy", "copy", "low_rank"))
        if self.strategy == "low_rank" and self.rank is None:
            raise InputError("--strategy low_rank: the noise has full rank; give it a --rank, or choose lazy or copy")
        one_of("--dtype", self.dtype, ("auto", "float32", "bfloat16"))

        self._validate_processes()

    def _validate_processes(self) -> None:
        if self.mesh is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.mesh):
            raise InputError(f"--mesh {self.mesh}: CANDIDATExMODEL is required, e.g. --mesh 4x2")
        numbers = (self.num_processes, self.process_id)
        if self.coordinator is None or self.coordinator == CLUSTER:
            if numbers != (None, None):
                raise InputError("--num-processes, --process-id: only together with --coordinator HOST:PORT")
            return
        address = re.fullmatch(r"[^\s:]+:(\d{1,5})", self.coordinator)
        if address is None or not 0 < int(address[1]) < 2**16:
            raise InputError(f"--coordinator {self.coordinator}: HOST:PORT, with a port from 1 to 65535, or {CLUSTER} is required")
        if self.num_processes is None or self.process_id is None or not 0 <= self.process_id < self.num_processes:
            given = f"--num-processes {self.num_processes} --process-id {self.process_id}"
            raise InputError(f"{given}: --coordinator HOST:PORT needs both, with 0 <= process id < processes")

    @property
    def race(self) -> Race:
        """The race that these settings make."""
        return Race(self.racing, self.population, self.search_examples, self.top_k)


def positive_integer(flag: str, value: Any) -> None:
    """Raise ``InputError`` unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{flag} {value}: an integer of at least 1 is required")


def one_of(flag: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ``InputError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(f"{flag} {value}: one of {', '.join(allowed)} is required")


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raise ``InputError`` unless there is at least one sigma and all are finite, positive, distinct and exist in float32."""
    if not sigmas:
        raise InputError("--sigmas: at least one noise scale is required, e.g. --sigmas 0.0005,0.001,0.002")
    for sigma in sigmas:
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not math.isfinite(sigma) or sigma <= 0:
            raise InputError(f"--sigmas {sigma}: every noise scale must be a positive finite number, e.g. --sigmas 0.0005,0.001,0.002")
        if not float(np.finfo(np.float32).tiny) <= sigma <= float(np.finfo(np.float32).max):
            raise InputError(f"--sigmas {sigma}: outside the range of float32; the literature uses 0.0005 to 0.003")
    if len({float(np.float32(sigma)) for sigma in sigmas}) < len(sigmas):
        raise InputError(f"--sigmas {','.join(map(repr, sigmas))}: a noise scale occurs twice; name each once")


def _text(flag: str, value: str) -> None:
    if not value.strip() or re.search(r"[\x00-\x1f]", value):
        raise InputError(f"{flag} {value!r}: a name or path is required")
