"""The kernels, alone and in whole decoders, compiled for chips that are not here: v5e, v5p and v6e by the compiler in libtpu, H100 by the
one in jax's CUDA plugin."""

import json
import subprocess
import sys
from functools import cache, partial

import pytest
from support.compilers import PLATFORMS, environment
from support.paths import SUPPORT


@cache
def compiled(program, platform):
    """One process for all cases of a platform, as loading the compiler takes seconds."""
    path = SUPPORT / program
    command = [sys.executable, str(path), platform]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, cwd=path.parents[1])
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


kernels = partial(compiled, "kernels_compile.py")
decoders = partial(compiled, "lazy_kernels_compile.py")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_case_compiles_to_one_kernel(platform):
    found = kernels(platform)
    assert {case.split(":")[0] for case in found} == ({"v5e", "v5p", "v6e"} if platform == "tpu" else {"h100"})
    assert not {case: result["error"] for case, result in found.items() if "error" in result}
    assert {case: result["kernels"] for case, result in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_of_a_weights_size_is_kept(platform):
    case = kernels(platform)["v5e: rademacher" if platform == "tpu" else "h100: rademacher"]
    assert case["weight_bytes"] == 2 * 2**20
    assert case["temp_bytes"] <= case["weight_bytes"] / 8


def without_kernels(case, platform):
    """How many of a decoder's eight matrices are made whole, as a kernel for GPUs would be slower: with 384 rows of signs all but the head,
    which 16 rows ask, and with gaussian noise all."""
    return {"scoring": 7, "scoring of sharded matrices with gaussian noise": 8}.get(case, 0) if platform == "cuda" else 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_compiled_decoder_holds_no_matrix_but_its_weights(platform):
    for case, found in decoders(platform)["decoders"].items():
        if whole := without_kernels(case, platform):
            # One layer's for each candidate in flight, never the stack's.
            assert len(found["matrices"]) == whole and "(6, " not in " ".join(found["matrices"]), case
        elif case == "copy":
            # The reader sees what there is: a perturbed copy of every matrix.
            assert len(found["matrices"]) >= 8 and found["temp_bytes"] > found["bound"]
        else:
            assert found["matrices"] == [] and found["temp_bytes"] < found["bound"], case


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_compiled_decoder_has_a_kernel_for_every_matrix(platform):
    for case, found in decoders(platform)["decoders"].items():
        # q, k, v, o, gate, up and down, once in the loop over layers, and the head. For replies again in the loop over tokens, of which
        # the compiler may take a step apart.
        if whole := without_kernels(case, platform):
            assert found["kernels"] == 8 - whole, case
            continue
        times = {"copy": (0,), "replies": (2, 3)}.get(case, (1,))
        assert found["kernels"] in [8 * n for n in times], case
        # A kernel reads a layer's matrix in the stack of all: one operand for all candidates, and no copy of the layer.
        assert found["weights"] == sorted(found["every_weight"] * (found["kernels"] // 8)), case


@pytest.mark.parametrize("platform", PLATFORMS[:1])
def test_kernels_compile_where_shard_map_checks(platform):
    assert decoders(platform)["checked_shards"] == 1
