"""``perturbjax export``: one model of a run as a Hugging Face directory, or as a PEFT adapter of its base."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from perturbjax.cli.caulking import export_caulk
from perturbjax.cli.consolidate import refuse_consolidated
from perturbjax.cli.outputs import check_new_directory, check_outside
from perturbjax.cli.pretrained import export_pretrained
from perturbjax.cli.value import export_value, refuse_options
from perturbjax.errors import InputError
from perturbjax.ivl.config import VocabularyName
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.config import check_positive
from perturbjax.runs.console import Console
from perturbjax.runs.rundir import RunDirectory

if TYPE_CHECKING:
    from perturbjax.noise import Candidate, Noise
    from perturbjax.pretrained import Model
    from perturbjax.tree import Params

ADAPTER_OPTIONS = ("format", "adapter_rank")
"""Options that only a run of randopt has a use for."""


@dataclass(frozen=True)
class ExportConfig:
    """Write one model of a run as a Hugging Face safetensors directory that transformers loads.

    - one member: perturbjax export RUN --rank 1 --out best
    - the same as a PEFT adapter, exact where low-rank noise moves matrices alone: perturbjax export RUN --rank 1 --format peft --out lora
    - their average: perturbjax export RUN --merge --out merged
    - the base: perturbjax export RUN --base --out base
    - a caulk, as a PEFT adapter where it is LoRA on the base itself: perturbjax export RUN --cell lora-q0-n64-s0 --out DIR
    - the model of a vpretrain run, or with --base step 0: perturbjax export RUN --out model
    - the value network of an ivl run, with a page on how to add its logits: perturbjax export RUN --out value
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished run."""
    out: Path
    """Directory to write; must not exist, or be empty."""
    rank: int | None = None
    """The member of this rank, 1 being the best."""
    merge: bool = False
    """The average of all members' weights, computed in float32 and rounded once; perturbjax consolidate tries several, and measures."""
    base: bool = False
    """The unperturbed base, as the run used it."""
    format: Literal["hf", "peft"] = "hf"
    """hf: a whole model, as transformers loads it. peft: the member, or the average, as a LoRA adapter of the base."""
    adapter_rank: int | None = None
    """Of a PEFT adapter: its rank, for the nearest one of that rank where none is exact; how near is shown."""
    beside: str | None = None
    """Of a value network: a base with another vocabulary, to which a map is written beside it."""
    vocabulary: VocabularyName | None = None
    """Of a value network: the kind of that map; see perturbjax evaluate --help."""
    cell: str | None = None
    """Of a grid of caulks: the name of the cell whose caulk is written."""
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""
    compile_cache: str = "auto"
    """As for randopt."""


def run_export(config: ExportConfig, console: Console) -> None:
    """Rebuild the asked model from ensemble.json and write it."""
    chapter = RunDirectory(config.run).chapter
    refuse_consolidated(config.run, chapter)
    check_new_directory(config.out)
    check_outside(config.out, config.run)
    if chapter == "caulking":
        refuse_options(config, ("rank", "merge", "base", *ADAPTER_OPTIONS, "beside", "vocabulary"), "caulking")
        return export_caulk(config, console)
    refuse_options(config, ("cell",), "another chapter than caulking")
    if chapter == "vpretrain":
        refuse_options(config, ADAPTER_OPTIONS, "vpretrain")
        return export_pretrained(config, console)
    if chapter == "ivl":
        refuse_options(config, ("rank", "merge", "base", *ADAPTER_OPTIONS), "ivl")
        return export_value(config, console)
    refuse_options(config, ("beside", "vocabulary"), "randopt")
    if [config.rank is not None, config.merge, config.base].count(True) != 1:
        raise InputError("export: exactly one of --rank, --merge and --base is required")
    check_positive(config, "adapter_rank")
    if config.format == "peft" and config.base:
        raise InputError("`format` peft: the base is what an adapter is added to; give `rank` or `merge`, or leave `format` out")
    if config.format != "peft" and config.adapter_rank is not None:
        raise InputError(f"`adapter_rank` {config.adapter_rank}: only an adapter has one; add `format` peft, or leave it out")
    use_compile_cache(config.compile_cache, console)
    from perturbjax.noise import perturb
    from perturbjax.pretrained.export import export_safetensors
    from perturbjax.randopt.ensemble import merge
    from perturbjax.randopt.setup import reopen_ensemble

    parts, ensemble = reopen_ensemble(config.run, console.note, config.trust)
    params, what, chosen = parts.model.params, "the base", list(range(len(ensemble)))
    if config.rank is not None:
        index = ensemble.of_rank(config.rank)
        chosen = [config.rank - 1]
        params = perturb(params, ensemble.population[index], ensemble.noise)
        what = f"the member of rank {config.rank} (candidate {index}, sigma {ensemble.population.sigma_of([index])[0]:g})"
    elif config.merge:
        params, what = merge(params, ensemble.candidates, ensemble.noise), f"the average of the {len(ensemble)} members"
    if config.format == "peft":
        candidates = ensemble.population[ensemble.members[chosen]]
        _write_adapter(config, parts.model, params, candidates, ensemble.noise, what, console)
        return
    export_safetensors(parts.model, params, config.out)
    console.line(f"wrote {what} to {config.out}")


def _write_adapter(
    config: ExportConfig, model: "Model", theta: "Params", candidates: "Candidate", noise: "Noise", what: str, console: Console
) -> None:
    """Write changed weights as an adapter, and say how much of the change it leaves out."""
    from perturbjax.pretrained.adapter_files import write_adapter
    from perturbjax.randopt.adapters import exact_adapter, nearest_adapter

    rank = config.adapter_rank
    adapter = exact_adapter(model, theta, candidates, noise) if rank is None else nearest_adapter(model, theta, rank)
    write_adapter(adapter.lora, adapter.trained, model, config.out)
    console.line(f"wrote {what} as a PEFT adapter of rank {adapter.lora.rank} of {model.name} to {config.out}")
    console.line(f"error      {adapter.error:.2e} of the change of the weights (Frobenius norm)")
    if adapter.left_out:
        console.line(f"left out   {', '.join(adapter.left_out)}")
