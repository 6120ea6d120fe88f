"""What a pod would need, asked of the TPU compiler, and the collectives that are read from compiled text."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from support.compilers import environment
from support.paths import ROOT

from perturbjax.bench.collectives import Collective, read_collectives
from perturbjax.bench.plan import CHIPS, Chip, Plan, device_bytes, largest
from perturbjax.bench.steering_plan import steering_lines
from perturbjax.cli.plan import PlanConfig, run_plan
from perturbjax.errors import InputError
from perturbjax.models.config import SlidingWindow, forward_flops, param_shapes, used_parameters
from perturbjax.noise import Noise
from perturbjax.pretrained.hf_config import decoder_config
from perturbjax.runs.console import Console

CONFIG = ROOT / "scripts" / "configs" / "qwen2.5-0.5b.json"


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perturbjax", "plan", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(
    ("name", "parameters", "used"),
    [
        ("qwen3-8b", 8_190_735_360, 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624, 3_353_032_704),
        ("olmo2-7b", 7_298_617_344, 7_298_617_344),
        ("gemma3-1b", 999_885_952, 999_885_952),
    ],
)
def test_sizes_of_released_models(name, parameters, used):
    config = decoder_config(json.loads((ROOT / "scripts" / "configs" / f"{name}.json").read_text()))
    assert (sum(map(math.prod, param_shapes(config).values())), used_parameters(config)) == (parameters, used)


def test_attention_of_a_window_is_counted():
    """Of 10 tokens in a window of 4: 4 of the triangle's 10 rows have fewer; half a square, then a band."""
    config = replace(decoder_config(json.loads(CONFIG.read_text())), num_layers=2)
    whole, slides = (forward_flops(replace(config, window=window), 3, 10, 1) for window in (None, SlidingWindow(4, 2, 1e4)))
    assert whole - slides == 2 * 2 * config.num_heads * config.head_dim * 3 * (10 * 10 / 2 - (4 * 4 / 2 + 4 * 6))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: the extra perturbjax[tpu] holds the TPU compiler"
)
def test_candidates_never_talk_and_weights_are_never_gathered():
    small = ("--topology", "v5e:2x2", "--mesh", "2x2", "--rows", "8", "--row-tokens", "128", "--prompts", "4", "--prompt-tokens", "32")
    done = plan("--model", str(CONFIG), "--chunk", "50", *small, "--max-new-tokens", "32", "--no-search")
    assert done.returncode == 0, done.stderr
    verdicts = re.findall(r'on "data" inside the loop: (\d+); all-gathers over "model" beyond 4 MiB .*: (\d+)', done.stdout)
    assert verdicts[:2] == [("0", "0")] * 2 and [gathers for _, gathers in verdicts] == ["0"] * 3, done.stdout
    many, few = re.findall(r"temporaries ([\d.]+) MiB, .* \(([\d,]+) candidates a call", done.stdout)
    assert (many[1], few[1]) == ("100", "2")
    assert float(many[0]) == pytest.approx(float(few[0]), rel=0.05), "temporaries do not grow with the population"
    # 24 layers, one sum after attention and one after the mlp.
    assert re.search(r"all-reduce +model +inside 3 loops +48 x 1.75 MiB", done.stdout), done.stdout
    assert "6,400 takes 64, N = 640,000 takes 6400" in done.stdout
    assert "TRAINING of all parameters, 16 rows of 128 tokens a step" in done.stdout


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": Path("nope.json")}, "`model` nope.json: no such file; give a model's config.json"),
        ({"value": ROOT / "pyproject.toml"}, "`value` "),
        ({"topology": "v9:2x2"}, "`topology` v9:2x2: a kind of TPU and its slice is required"),
        ({"topology": "v5e:2x2", "mesh": "3x1"}, "`mesh` 3x1: 3 devices, v5e:2x2 has 4"),
        ({"chunk": 0}, "`chunk` 0: "),
        ({"noise": "pink"}, "`noise` pink: one of "),
        ({"value": CONFIG, "program": "scoring"}, "`program` scoring: a value network is planned in training and generation"),
        ({"value": CONFIG, "program": "steering"}, "`program` steering: a value network is planned in training and generation"),
    ],
)
def test_mistakes_are_said_in_one_line(changed, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run_plan(PlanConfig(**{"model": CONFIG, **changed}), Console())


def test_a_value_network_is_planned_beside_a_base_of_its_vocabulary(tiny):
    base = tiny.parts[""]
    both = Plan(base, jax.devices()[:1], 1, None, "lazy", base)
    head = base.vocab_size * base.hidden_size
    assert both.parameters == 2 * tiny.parameters + head  # the value network's own head
    assert both.training_flops(2, 16, 8) == pytest.approx(tiny.flops(2, 16, 8) * 4, rel=0.01)
    with pytest.raises(InputError, match="one vocabulary is planned"):
        Plan(base, jax.devices()[:1], 1, None, "lazy", replace(base, vocab_size=300))
    with jax.numpy_dtype_promotion("standard"):
        assert device_bytes(both.training(2, 16, 8)) > device_bytes(both.generation(2, 8, 4)) > 0


@pytest.fixture(scope="module")
def tiny() -> Plan:
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    return Plan(
        decoder_config(config | {"hidden_act": "silu", "tie_word_embeddings": True}), jax.devices()[:1], 1, Noise("rademacher"), "lazy"
    )


def test_sizes_and_flops_are_those_of_the_model(tiny):
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    assert tiny.parameters == 256 * 64 + 2 * (layer + 2 * 64) + 64
    assert tiny.cache_bytes(3, 10) == 2 * 2 * 2 * (2 * 16) * 30  # keys and values, 2 bytes each, 2 layers, 2 heads of 16
    # Norms are counted as matrices, which is nothing; the head is at the 5 positions that want logits.
    head, attention = 2 * 256 * 64 * 5, 2 * 2 * 2 * 64 * 3 * 10**2 / 2
    assert tiny.flops(3, 10, 5) == pytest.approx(2 * 2 * layer * 30 + attention + head, rel=0.02)


def test_roofline_names_its_terms(tiny):
    chip = CHIPS["v5e"]
    assert tiny.roofline(chip, 197e12, 10.0, 819e9) == {"FLOPs": 1.0, "HBM": 1.0, "ICI": 0.0}


def test_bytes_on_a_device_grow_with_the_rows(tiny):
    with jax.numpy_dtype_promotion("standard"):  # flax's RMSNorm multiplies float32 with a bfloat16 scale
        assert device_bytes(tiny.scoring(1, 2, 32)) < device_bytes(tiny.scoring(1, 4, 32))


def test_steering_is_planned_beside_the_plain_step(tiny):
    plan, lines = Plan(tiny.parts[""], jax.devices()[:1], 1, None, "lazy"), []
    with jax.numpy_dtype_promotion("standard"):
        steering_lines(plan, CHIPS["v5e"], 2, 16, lines.append)
    plain, steered, update = map(float, re.findall(r"arguments ([\d.]+) MiB", "\n".join(lines)))
    assert plain == pytest.approx(3 * 4 * tiny.parameters / 2**20, rel=0.02)  # weights and both moments in float32
    assert min(steered, update) > 10 * plain, "the designer is an argument of both"
    (ratio,) = re.findall(r"memory ([\d.]+) \(", "\n".join(lines))
    assert float(ratio) > 1.5 and lines[-2].endswith("of 16.00 GiB a device: it fits);")


def test_the_largest_that_fits_is_found_by_doubling():
    def compiled(n):
        memory = SimpleNamespace(argument_size_in_bytes=100, temp_size_in_bytes=20 * n, output_size_in_bytes=n)
        return SimpleNamespace(memory_analysis=lambda: memory)

    chip = Chip(hbm=100 + 21 * 8, flops=1, bandwidth=1, ring=1)
    assert largest(chip, 2, compiled) == largest(chip, 1, compiled) == 8 and largest(chip, 3, compiled) == 6
    assert largest(chip, 16, compiled) == 0

    def refused(n):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

    assert largest(chip, 1, refused) == 0


TEXT = """HloModule jit_f

%layer_condition (p: (s32[], bf16[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(28), metadata={op_name="f"}
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%layer (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %psum.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%chunk_condition (p: (s32[], s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %count), direction=LT
}

%chunk (p: (s32[], s32[])) -> (s32[], s32[]) {
  %w = (s32[], bf16[8]) while(%t), condition=%layer_condition, body=%layer
  %both = (f32[2]{0}, f32[3]{0}) all-reduce(%a, %b), replica_groups=[2,2]<=[4], to_apply=%add
  %across = f32[5]{0} all-reduce(%a), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
}

ENTRY %main (p: s32[]) -> f32[16] {
  %w = (s32[], s32[]) while(%t), condition=%chunk_condition, body=%chunk
  %all-gather-start = (f32[8]{0}, f32[16]{0}) all-gather-start(%r), replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, dimensions={0}
  %fused = f32[4] fusion(%all-gather-start), kind=kLoop, calls=%nowhere
}
"""


def test_kind_axis_size_loops_and_turns_are_read():
    assert sorted(read_collectives(TEXT, model=2), key=lambda one: one.nbytes) == [
        Collective("all-reduce", "model", 20, 1, 1),
        Collective("all-reduce", "data", 20, 1, 1),
        Collective("all-reduce", "model", 64, 2, 28),
        Collective("all-gather", "data", 64, 0, 1),
    ]
