"""The kernels compiled for chips that are not here: v5e, v5p and v6e by the compiler in libtpu, H100 by the one in jax's CUDA plugin."""

import json
import subprocess
import sys
from functools import cache

import pytest
from support.compilers import PLATFORMS
from support.paths import SUPPORT

HELPER = SUPPORT / "kernels_compile.py"


@cache
def results(platform):
    """One process for all cases of a platform, as loading the compiler takes seconds."""
    run = subprocess.run([sys.executable, str(HELPER), platform], capture_output=True, text=True, timeout=300, cwd=HELPER.parents[1])
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_case_compiles_to_one_kernel(platform):
    found = results(platform)
    assert {case.split(":")[0] for case in found} == ({"v5e", "v5p", "v6e"} if platform == "tpu" else {"h100"})
    assert not {case: result["error"] for case, result in found.items() if "error" in result}
    assert {case: result["kernels"] for case, result in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_of_a_weights_size_is_kept(platform):
    case = results(platform)["v5e: rademacher" if platform == "tpu" else "h100: rademacher"]
    assert case["weight_bytes"] == 2 * 2**20
    assert case["temp_bytes"] <= case["weight_bytes"] / 8
