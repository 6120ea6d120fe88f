#!/usr/bin/env python
"""Export the base and the best member of a run, and read them back.

    .venv/bin/python scripts/check_export.py RUN

Each is exported as `perturbjax export` does, loaded again by our loader, whose logits must be identical to those of the weights in memory,
and, where torch and transformers are installed beside us, by transformers, whose logits must agree to 1e-4 of their largest. Exit code 1
if not.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from inputs import directory, exit_code

from perturbjax.cli import main as perturbjax
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.noise import perturb
from perturbjax.pretrained import Model, load_model
from perturbjax.randopt.setup import reopen_ensemble
from perturbjax.runs.console import Console

TEXT = "The quick brown fox jumps over the lazy dog. In 2026, 17 + 25 = 42; café, naïve."


def logits_of(model: Model, params, tokens: list[int]) -> np.ndarray:
    """(T, V) of one sequence."""

    def forward(params, row):
        decoder = decoder_from_params(model.config, params)
        hidden, _ = decoder(row, jnp.arange(row.shape[1])[None], causal_mask(jnp.ones(row.shape, bool)))
        return decoder.logits(hidden)[0]

    return np.asarray(jax.jit(forward)(params, jnp.asarray(tokens)[None]))


def transformers_logits(directory: Path, tokens: list[int]) -> np.ndarray | None:
    """The same by transformers, or None where it is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return model(torch.tensor([tokens])).logits[0].numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=directory)
    run = parser.parse_args().run
    parts, ensemble = reopen_ensemble(run, Console().note)
    best = perturb(parts.model.params, ensemble.population[int(ensemble.members[0])], ensemble.noise)
    tokens = parts.model.tokenizer.encode(TEXT)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, choice, params in (("base", ["--base"], parts.model.params), ("rank 1", ["--rank", "1"], best)):
            out = Path(folder) / name.replace(" ", "-")
            if perturbjax(["export", str(run), *choice, "--out", str(out)]) != 0:
                return 1
            wanted = logits_of(parts.model, params, tokens)
            again = load_model(str(out), parts.dtype)
            identical = np.array_equal(wanted, logits_of(again, again.params, tokens))
            theirs = transformers_logits(out, tokens)
            error = None if theirs is None else float(np.abs(theirs - wanted).max() / np.abs(wanted).max())
            beside = "not installed" if error is None else f"largest difference {error:.1e} of the largest logit"
            print(f"{name}: our loader {'identical' if identical else 'DIFFERENT'}; transformers {beside}", flush=True)
            failed |= not identical or (error is not None and error > 1e-4)
    return int(failed)


if __name__ == "__main__":
    sys.exit(exit_code(main))
