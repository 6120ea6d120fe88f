"""The scripts under scripts/examples run, and their searches help; the search is a small change of the training script."""

import difflib
import runpy

import jax
import pytest
from support.paths import SCRIPTS

EXAMPLES = SCRIPTS / "examples"


@pytest.mark.parametrize(("name", "gain"), [("nnx_digits.py", -0.01), ("equinox_model.py", 0.3), ("train_then_search.py", 0.002)])
def test_an_example_runs_and_its_vote_gains(name, gain, capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    figures = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[-4:].replace(".", "").isdigit()]
    (_, base), *_, (what, vote) = figures
    assert what.startswith("vote") and float(vote) >= float(base) + gain and float(vote) > 0.6


def test_a_search_is_under_twenty_changed_lines_of_the_training_script():
    before, after = ((EXAMPLES / name).read_text().splitlines() for name in ("train.py", "train_then_search.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[:1] in "+-"]
    assert 0 < len(changed) < 20 and sum(line.startswith("- ") for line in changed) <= 3


def test_examples_are_short():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"nnx_digits.py", "equinox_model.py", "train.py", "train_then_search.py"}
    assert all(len(path.read_text().splitlines()) < 120 for path in EXAMPLES.glob("*.py"))
