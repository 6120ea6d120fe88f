"""``perturbjax plan``: what a run would need on chips that are not here, from compiling its programs for them."""

import importlib.metadata
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from perturbjax.errors import InputError, positive_integer
from perturbjax.noise import DISTRIBUTIONS, Noise
from perturbjax.runs.config import check_choices
from perturbjax.runs.console import Console
from perturbjax.runs.files import read_json

if TYPE_CHECKING:
    from perturbjax.models.config import DecoderConfig

NAMES = {"v5e": "v5litepod-{0}", "v5p": "v5p-{1}", "v6e": "v6e-{0}"}
"""What Cloud TPU calls a slice, by its number of chips and of cores."""


@dataclass(frozen=True)
class PlanConfig:
    """Say what a run needs on TPUs that are not here: bytes on each device, collectives, what fits, and a roofline.

    - a search: perturbjax plan --model config.json --topology v5e:16x16 --mesh 64x4
    - a value network beside a base: perturbjax plan --model base.json --value value.json --topology v5p:4x4x4 --mesh 8x8
    - a steered pretraining: perturbjax plan --model config.json --program steering --topology v5p:4x4x4 --mesh 8x8

    Programs are compiled for the topology by the TPU compiler (pip install 'perturbjax[tpu]'); nothing runs, so nothing here is a measured
    speed. Rooflines are from the vendor's figures."""

    model: Path
    """config.json of a model, or the directory that holds it; no weights are read."""
    value: Path | None = None
    """The same of a value network: its training beside the model is planned, and decoding with it, without noise."""
    program: Literal["all", "scoring", "generation", "training", "steering"] = "all"
    """scoring and generation of a search; training of the value network, or of all parameters; steering: pretraining all parameters on
    the targets of a designer (vpretrain), which all leaves out."""
    topology: str = "v5e:16x16"
    """Such as v5e:16x16, v5p:4x4x4 or v6e:8x8."""
    mesh: str = "64x4"
    """DATAxMODEL."""
    noise: str = "rademacher"
    """As for randopt."""
    strategy: Literal["lazy", "copy"] = "lazy"
    """As for randopt."""
    chunk: int = 100
    """Candidates of a group of devices in one call of the scoring program."""
    rows: int = 8
    """Rows of a scoring pass, and of a training step, on each group of devices."""
    row_tokens: int = 512
    """Tokens of such a row."""
    slots: int = 8
    """Passes that score one candidate."""
    prompts: int = 64
    """Prompts that are generated from at a time."""
    prompt_tokens: int = 512
    """Tokens of a prompt."""
    max_new_tokens: int = 512
    """New tokens of each."""
    search: bool = True
    """Look for the largest batches that fit, which compiles several times."""

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        check_choices(self)
        for name in ("chunk", "rows", "row_tokens", "slots", "prompts", "prompt_tokens", "max_new_tokens"):
            positive_integer(name, getattr(self, name))
        if not re.fullmatch(rf"({'|'.join(NAMES)}):\d+(x\d+)+", self.topology):
            raise InputError(f"`topology` {self.topology}: a kind of TPU and its slice is required, such as v5e:16x16 or v5p:4x4x4")
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.mesh):
            raise InputError(f"`mesh` {self.mesh}: DATAxMODEL is required, such as 64x4")
        data, model = self.shape
        if data * model != self.chips:
            raise InputError(f"`mesh` {self.mesh}: {data * model} devices, {self.topology} has {self.chips}")
        if self.noise not in DISTRIBUTIONS:
            raise InputError(f"`noise` {self.noise}: one of {', '.join(DISTRIBUTIONS)} is required")
        if self.value is not None and self.program in ("scoring", "steering"):
            raise InputError(f"`program` {self.program}: a value network is planned in training and generation; leave out `value`")

    @property
    def chips(self) -> int:
        return math.prod(int(n) for n in self.topology.split(":")[1].split("x"))

    @property
    def shape(self) -> tuple[int, int]:
        """(data, model)."""
        data, model = self.mesh.split("x")
        return int(data), int(model)


def run_plan(config: PlanConfig, console: Console) -> None:
    """Compile and say."""
    config.validate()
    base, value = _read("model", config.model), None if config.value is None else _read("value", config.value)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed: it holds the TPU compiler; pip install 'perturbjax[tpu]'")
    kind = config.topology.split(":")[0]
    # Without these a Python that has libtpu looks for a TPU and waits; and nothing is run, so several may compile at a time.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["TPU_ACCELERATOR_TYPE"] = NAMES[kind].format(config.chips, 2 * config.chips)
    import jax
    from jax.experimental import topologies

    from perturbjax.bench.plan import CHIPS, Plan
    from perturbjax.bench.plan_lines import generation_lines, scoring_lines, size, training_lines

    jax.config.update("jax_platforms", "cpu")
    noise = None if value or config.program in ("training", "steering") else Noise(config.noise)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=config.topology).devices
        plan = Plan(base, devices, config.shape[1], noise, config.strategy, value)
    except ValueError as error:  # a topology that does not exist, a model that cannot be sharded so
        raise InputError(f"`topology` {config.topology}, `mesh` {config.mesh}: {str(error).splitlines()[0]}") from error
    say, chip = console.line, CHIPS[kind]
    beside = f", noise {config.noise}, {config.strategy}" if noise else f", value network {config.value}" if value else ""
    say(f"{config.model}, {plan.parameters / 1e9:.2f} G parameters in bf16{beside}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    say(f"{config.topology}, {config.chips} chips, mesh data x model = {config.mesh}; compiled with {versions}")
    say(f"layout {plan.parallel or 'one device has all of it'}; weights {size(plan.params.device_bytes)} a device")
    if config.program in ("all", "scoring") and value is None:
        scoring_lines(plan, chip, config.rows, config.row_tokens, config.slots, config.chunk, config.search, say)
    if config.program in ("all", "generation"):
        generation_lines(plan, chip, config.prompts, config.prompt_tokens, config.max_new_tokens, config.search, say)
    if config.program in ("all", "training"):
        training_lines(plan, chip, config.rows, config.row_tokens, config.search, say)
    if config.program == "steering":
        from perturbjax.bench.steering_plan import steering_lines

        steering_lines(plan, chip, config.rows, config.row_tokens, say)


def _read(name: str, path: Path) -> "DecoderConfig":
    from perturbjax.pretrained.hf_config import decoder_config

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"`{name}` {path}: no such file; give a model's config.json, or the directory that holds it")
    try:
        return decoder_config(read_json(file))
    except InputError as error:
        raise InputError(f"`{name}` {path}: {error}") from error
