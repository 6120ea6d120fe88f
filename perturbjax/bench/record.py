"""What a benchmark leaves: the rows of bench.json and the table on the terminal."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

from perturbjax.bench import scopes
from perturbjax.bench.measure import SIGMA, Case, Row, Settings
from perturbjax.noise import Population
from perturbjax.pretrained import Model
from perturbjax.runs.profile import trace


def header(model: Model, dtype: str) -> dict[str, Any]:
    """Devices, model and shapes."""
    shape = model.config
    return {
        "device_kinds": sorted({device.device_kind for device in jax.devices()}),
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "model": {"name": model.name, "source": model.source, "dtype": dtype},
        "shapes": {
            "layers": shape.num_layers,
            "hidden": shape.hidden_size,
            "intermediate": shape.intermediate_size,
            "vocabulary": shape.vocab_size,
        },
    }


def document(rows: list[Row], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """``rows`` (one for each row, noise and strategy), ``references`` (one for each row) and ``steps`` (shares of the time by scope)."""
    return {
        "rows": [_case(row, case) for row in rows for case in row.cases],
        "references": [_reference(row) for row in rows],
        "steps": steps,
    }


def _case(row: Row, case: Case) -> dict[str, Any]:
    reference = row.reference.rate
    rounds = [a / b for a, b in zip(row.reference.seconds, case.seconds, strict=True)]
    scale = case.tokens / row.reference.tokens
    return {
        "kind": row.workload.kind,
        "strategy": case.strategy,
        "noise": case.noise,
        "tokens_per_candidate": case.tokens / row.population,
        "candidates": row.population,
        "candidates_per_s": row.population / statistics.median(case.seconds),
        "tokens_per_s": case.rate,
        "reference_tokens_per_s": reference,
        "efficiency": case.rate / reference,
        "efficiency_rounds": [scale * ratio for ratio in rounds],
        "auto": row.chosen[case.noise] == case.strategy,
        "of_best": case.rate / max(other.rate for other in row.cases if other.noise == case.noise),
        "compile_s": case.compile_s,
        "temp_bytes": case.temp_bytes,
        "seconds": case.seconds,
        "row_steps": list(case.row_steps) if case.row_steps else None,
    }


def _reference(row: Row) -> dict[str, Any]:
    return {
        "kind": row.workload.kind,
        "label": row.workload.label,
        "tokens": row.reference.tokens,
        "tokens_per_s": row.reference.rate,
        "tried": {str(size): rate for size, rate in row.tried.items()},
        "batch_size": row.best,
        "compile_s": row.reference.compile_s,
        "temp_bytes": row.reference.temp_bytes,
        "seconds": row.reference.seconds,
    }


def steps(rows: list[Row], settings: Settings, directory: Path | None) -> list[dict[str, Any]]:
    """Shares of the time by scope, from traces of one candidate and of the plain model: for the last row of each kind, with the first kind
    of noise and what ``auto`` chose for it. The traces are kept in ``directory`` if there is one."""
    noise = next(iter(settings.noises))
    one = Population(seed=settings.seed, size=1, sigmas=(SIGMA,))[:]
    found = []
    for row in {row.workload.kind: row for row in rows if row.workload.kind != "early stopping"}.values():
        case = next(case for case in row.cases if case.noise == noise and case.strategy == row.chosen[noise])
        # On the population's own layout, so that the two columns differ in the noise alone.
        for what, plain in ((f"{noise}, {case.strategy}", False), ("plain model", True)):

            def run(case: Case = case, plain: bool = plain) -> Any:
                return case.engine.run_plain(case.prepared) if plain else case.engine.run(one, case.prepared)

            name = f"{row.workload.kind}-{'plain' if plain else f'{noise}-{case.strategy}'}".replace(" ", "-")
            with contextlib.ExitStack() as stack:
                kept = directory / name if directory is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
                run()
                seconds = trace(kept, run)
                texts = [str(program.as_text()) for program in case.engine.compiled(case.prepared, plain)]
                shares = scopes.shares(kept, texts, seconds)
            found.append({"kind": row.workload.kind, "label": row.workload.label, "what": what, **vars(shares)})
    return found


def row_lines(row: Row) -> list[str]:
    """One measured row for the terminal."""
    titles = zip(("cand./s", "tokens/s", "efficiency", "rounds", "compile s", "temp MiB"), (8, 10, 12, 14, 11, 10), strict=True)
    columns = f"  {'noise':<12}{'strategy':<10}" + "".join(f"{title:>{width}}" for title, width in titles)
    tried = ", ".join(f"{size}: {rate:.0f}" for size, rate in row.tried.items())
    unit = "tokens a pass" if row.workload.kind == "teacher-forced" else "rows"
    lines = ["", f"{row.workload.kind}, {row.workload.label}, {row.population} candidate{'s' if row.population > 1 else ''}"]
    lines += [f"  plain model {row.reference.rate:.0f} tokens/s in batches of {row.best} {unit} (tried {tried})", columns]
    for case in row.cases:
        entry = _case(row, case)
        ratios = f"{min(entry['efficiency_rounds']):.2f} to {max(entry['efficiency_rounds']):.2f}"
        note = f"  auto, {entry['of_best']:.0%} of the best" if entry["auto"] else ""
        lines.append(
            f"  {case.noise:<12}{case.strategy:<10}{entry['candidates_per_s']:>8.3g}{case.rate:>10.0f}{entry['efficiency']:>12.2f}"
            f"{ratios:>14}{case.compile_s:>11.1f}{case.temp_bytes / 2**20:>10.0f}{note}"
        )
    if row.workload.kind == "early stopping":
        ran, whole = row.cases[0].row_steps or (0, 0)
        saved = f"{1 - ran / whole:.0%}" if whole else "none"
        lines.append(f"  rows that have stopped leave the batch: {ran} row steps instead of {whole}, {saved} saved ({row.cases[0].noise})")
    return lines


def step_lines(steps: list[dict[str, Any]]) -> list[str]:
    """Where the time of a step goes, for the terminal."""
    lines = ["", "where the time of a step goes (a trace of one candidate; time of the operations, by innermost scope)"]
    names = (*scopes.SCOPES, scopes.OTHER)
    lines.append(f"  {'':<40}" + "".join(f"{name:>10}" for name in names))
    for step in steps:
        fractions = "".join(f"{step['shares'][name]:>10.0%}" for name in names)
        lines.append(f"  {step['kind'] + ', ' + step['what']:<40}{fractions}")
    return lines
