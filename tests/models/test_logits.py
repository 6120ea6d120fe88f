"""Logits against transformers: tiny random models and SmolLM2, ragged rows in one padded batch."""

import json

import numpy as np
import pytest
from support.logits import logits_of
from support.paths import FIXTURES

from perturbjax.pretrained import load_model


@pytest.mark.parametrize("fixture", ["tiny_llama3", "tiny_llama_tied", "tiny_qwen2"])
def test_logits_equal_transformers(fixture):
    reference = np.load(FIXTURES / fixture / "reference.npz")
    count = sum(name.startswith("ids_") for name in reference.files)
    got = logits_of(load_model(str(FIXTURES / fixture)), [reference[f"ids_{index}"] for index in range(count)])
    for index in range(count):
        expected = reference[f"logits_{index}"]
        assert np.abs(got[index] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_smollm2_logits_equal_transformers():
    """The embedded default: dequantisation, q and k row order, tied head and chat prompt at once."""
    rows = json.loads((FIXTURES / "smollm2_reference.json").read_text())["logits"]
    got = logits_of(load_model("smollm2-135m"), [row["prompt_ids"] for row in rows])
    for logits, row in zip(got, rows, strict=True):
        last = logits[-1].astype(np.float64)
        scale = np.abs(row["top_logits"]).max()
        assert np.argsort(-last)[:20].tolist() == row["top_ids"]
        np.testing.assert_allclose(last[row["top_ids"]], row["top_logits"], rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(last.mean(), row["mean"], rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(np.logaddexp.reduce(last), row["log_normaliser"], rtol=0, atol=1e-4 * scale)
