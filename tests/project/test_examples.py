"""The scripts under scripts/examples run, and their searches help; the search is a small change of the training script. So do those
of README, as printed one after the other, and of the docstrings; each function that embedders use has one."""

import difflib
import doctest
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.paths import FIXTURES, ROOT, SCRIPTS

import perturbjax as pj

EXAMPLES = SCRIPTS / "examples"


GAINS = {"nnx_digits.py": (-0.01, 0.6), "equinox_model.py": (0.3, 0.6), "train_then_search.py": (0.002, 0.6), "tunix_model.py": (0.05, 0.5)}
"""Of the vote over the base, and the least accuracy of the vote."""


TUNIX_WARNS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("name", [pytest.param(name, marks=TUNIX_WARNS if "tunix" in name else ()) for name in GAINS])
def test_an_example_runs_and_its_vote_gains(name, capsys):
    if name == "tunix_model.py":
        pytest.importorskip("tunix", reason="google-tunix is not installed")
    gain, least = GAINS[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    figures = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[-4:].replace(".", "").isdigit()]
    (_, base), *_, (what, vote) = figures
    assert what.startswith("vote") and float(vote) >= float(base) + gain and float(vote) > least


def test_the_quickstart_gains_on_plain_functions_and_on_a_language_model(capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        main = runpy.run_path(str(EXAMPLES / "quickstart.py"))["main"]
        main(str(FIXTURES / "tiny_llama3"))
    figures = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith(("base", "vote"))]
    (base, vote), (decoder, votes) = figures[:2], figures[2:]
    assert vote > base + 0.1 and votes > decoder + 0.1


def test_a_search_is_under_twenty_changed_lines_of_the_training_script():
    before, after = ((EXAMPLES / name).read_text().splitlines() for name in ("train.py", "train_then_search.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[:1] in "+-"]
    assert 0 < len(changed) < 20 and sum(line.startswith("- ") for line in changed) <= 3


def test_examples_are_short():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*GAINS, "quickstart.py", "train.py"}
    assert all(len(path.read_text().splitlines()) < 120 for path in EXAMPLES.glob("*.py"))


README = ROOT / "README.md"


def test_the_python_examples_run_and_the_vote_beats_the_base():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accuracies, examples = done.stdout.splitlines()
    base, voted = map(float, accuracies.split())
    assert voted > base + 0.1 and re.fullmatch(r"\d+ \[\d+, \d+\]", examples) and 16 <= int(examples.split()[0]) < 64


PACKAGE = Path(pj.__file__).parent
MODULES = sorted(
    "perturbjax" + ".".join(["", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text()
)
WITH_EXAMPLES = [pj.perturb, pj.lazy, pj.lazily, pj.score_population, pj.top_k, pj.Ensemble.apply, pj.vote, pj.AskTell]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs={"__name__": "__main__"}):
        output: list[str] = []
        failed = runner.run(test, out=output.append).failed
        assert not failed, "".join(output)


@pytest.mark.parametrize("public", WITH_EXAMPLES, ids=lambda public: public.__qualname__)
def test_public_functions_have_examples(public):
    assert ">>>" in (inspect.getdoc(public) or "")
