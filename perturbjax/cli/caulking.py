"""``perturbjax caulking``: the grid on a language model, on one process or several; and what ``predict`` and ``export`` do with its run."""

from typing import TYPE_CHECKING

from perturbjax.caulking import Config
from perturbjax.cli.randopt import in_cluster
from perturbjax.errors import InputError
from perturbjax.runs.console import Console

if TYPE_CHECKING:
    from perturbjax.cli.export import ExportConfig
    from perturbjax.cli.predict import PredictConfig


def run_caulking(config: Config, console: Console) -> None:
    """Run; SIGTERM, or the loss of another process, ends it with a line and a code of its own."""
    config.validate()
    from perturbjax.caulking.stages import run

    in_cluster(config.machine, console, lambda peers: run(config, console, peers))


def predict_caulk(config: "PredictConfig", console: Console) -> None:
    """Answer questions with a base and one of the caulks of a run."""
    from perturbjax.caulking.reopen import reopen
    from perturbjax.cli.predict import read_questions, to_examples, write_lines
    from perturbjax.inference import Engine
    from perturbjax.noise import Noise

    rows = read_questions(config.questions)
    caulked = reopen(config.run, config.cell, console.note, config.trust)
    examples = to_examples(caulked.task, caulked.template, caulked.known, rows)
    engine = Engine(caulked.model, caulked.task, Noise(), chunk=1)
    answers = engine.run_plain(engine.prepare(examples, caulked.template)).answers[0]
    write_lines(config.out, ({"question": e.question, "answer": answer} for e, answer in zip(examples, answers, strict=True)))
    console.line(f"{len(examples)} answers by {caulked.model.name} written to {config.out}")


def export_caulk(config: "ExportConfig", console: Console) -> None:
    """Write one of the caulks of a run: LoRA on the base itself as PEFT reads it, everything else merged into a Hugging Face directory."""
    from perturbjax.caulking.reopen import reopen
    from perturbjax.models.adapters import Bottleneck, LoRA
    from perturbjax.pretrained.adapter_files import write_adapter
    from perturbjax.pretrained.export import export_safetensors

    caulked = reopen(config.run, config.cell, console.note, config.trust)
    cell, adapter = caulked.cell, caulked.method.adapter
    if isinstance(adapter, Bottleneck):
        raise InputError(f"`cell` {cell.name}: transformers and PEFT have no place for bottlenecks; export a cell of lora, bitfit or head")
    if isinstance(adapter, LoRA) and not cell.quality:
        write_adapter(adapter, caulked.trained["caulk"], caulked.base, config.out)
        console.line(f"wrote {cell.name} as a PEFT adapter of {caulked.base.name} to {config.out}")
        return
    model = caulked.model
    export_safetensors(model, model.params, config.out)
    console.line(f"wrote {caulked.base.name} with {cell.name} merged into it to {config.out}")
