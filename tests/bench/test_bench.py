import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cli_tiny import MODEL
from support.toy import one_batch_size

from perturbjax.bench import measure as measure_module
from perturbjax.bench import scopes, workloads
from perturbjax.bench.measure import Settings, measure
from perturbjax.bench.record import document, row_lines
from perturbjax.cli import bench as commands_bench
from perturbjax.cli import main
from perturbjax.inference import Engine
from perturbjax.inference.packing import ScoringExample, pack
from perturbjax.inference.programs import choice_values
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.noise import Noise, Population
from perturbjax.pretrained import load_model
from perturbjax.runs.profile import trace
from perturbjax.scoring import ChunkProgram
from perturbjax.sharding import make_mesh
from perturbjax.tasks import load_task

# Of the types of jax's own trace reader, made in C++ when they are first used; as an error there it ends the process.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

KEYS = {"kind", "strategy", "noise", "tokens_per_candidate", "candidates_per_s", "tokens_per_s", "reference_tokens_per_s", "efficiency"}


@pytest.fixture(scope="module", autouse=True)
def names_as_they_are():
    """Names in compiled programs are read here. By default the cache of the suite tells no programs apart that differ in names alone."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.fixture(scope="module")
def model():
    return load_model(str(MODEL))


def refused(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    code = main(["bench", "--model", str(MODEL), *arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    return captured.err.splitlines()[-1].removeprefix("perturbjax: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "8,8"], "--tokens 8,8: one is named twice"),
        (["--chunk", str(2**30)], "--chunk 1073741824: at most 1048576 is required"),
        (["--tokens", "0"], "--tokens 0: an integer of at least 1"),
        (["--tokens", "20"], "--tokens 20: the shortest prompt of sst2 has 1"),
        (["--tokens", "10000000"], "--tokens 10000000: all prompts of sst2 together have "),
        (["--tokens", "4x"], "--tokens '4x': an integer is required"),
        (["--noise", "white"], "--noise white: one of gaussian, rademacher, rank1 is required"),
        (["--rounds", "0"], "--rounds 0: "),
        (["--population", "-1"], "--population -1: "),
        (["--seed", "-1"], "--seed -1: "),
    ],
)
def test_bad_settings_are_one_line(arguments, message, capsys):
    assert refused(arguments, capsys).startswith(message)


def test_directories_that_cannot_be_written_are_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    missing = ["--model", "nope"]  # would be the next thing to be refused
    assert "is a file; give a directory" in refused([*missing, "--profile", str(tmp_path / "file")], capsys)
    assert "is a file; give a directory" in refused([*missing, "--profile", str(tmp_path / "file" / "below")], capsys)
    assert "not a directory" in refused([*missing, "--out", str(tmp_path / "file")], capsys)
    (tmp_path / "bench.json").write_text("{}")
    assert "already holds a bench.json" in refused([*missing, "--out", str(tmp_path)], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "file"]


@pytest.mark.parametrize("tokens", [300, 1000])
def test_prompts_come_as_near_to_the_tokens_asked_for_as_they_can(model, tokens):
    workload = workloads.teacher_forced(model, tokens)
    engine = Engine(model, workload.task, Noise(), chunk=1)
    ran = engine.prepare(workload.examples, workload.task.templates[0]).prompt_tokens
    assert 0.8 * tokens < ran <= tokens  # rows cannot be filled to the last token
    assert len({e.id for e in workload.examples}) == len(workload.examples) > 1


@pytest.fixture(scope="module", params=["teacher-forced", "generation"])
def taken(request, tmp_path_factory):
    """A benchmark of few programs: its folder and its kind."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workloads, "GENERATION_PROMPTS", 4)
        patch.setattr(measure_module, "SLOT_TOKENS", (512, 1024))
        patch.setattr(measure_module, "BATCH_ROWS", (4, 8))
        one_batch_size(patch, (8, 4))
        patch.setattr(commands_bench, "workloads", lambda config, model: [MAKERS[request.param](model)])
        arguments = ["bench", "--model", str(MODEL), "--rounds", "2", "--population", "2", "--noise", "rademacher"]
        assert main([*arguments, "--out", str(folder / "out"), "--profile", str(folder / "traces")]) == 0
    return folder, request.param


MAKERS = {"teacher-forced": lambda model: workloads.teacher_forced(model, 300), "generation": workloads.fixed_generation}


def test_bench_json_has_a_row_for_each_strategy_with_what_it_was_taken_on(taken):
    folder, kind = taken
    bench = json.loads((folder / "out" / "bench.json").read_text())
    assert [(row["kind"], row["strategy"]) for row in bench["rows"]] == [(kind, "lazy"), (kind, "copy")]
    [reference] = bench["references"]
    for row in bench["rows"]:
        assert row.keys() >= KEYS and row["temp_bytes"] > 0 and row["compile_s"] > 0 and len(row["seconds"]) == 2
        assert row["efficiency"] == pytest.approx(row["tokens_per_s"] / row["reference_tokens_per_s"])
        assert row["tokens_per_s"] == pytest.approx(row["candidates_per_s"] * row["tokens_per_candidate"])
        assert row["tokens_per_s"] == pytest.approx(2 * row["tokens_per_candidate"] / np.median(row["seconds"]))
        assert reference["tokens_per_s"] == row["reference_tokens_per_s"]
        if kind == "generation":
            # The same work, but that the plain model shares what all its prompts begin with once, and each candidate anew.
            assert row["tokens_per_candidate"] == pytest.approx(4 * 64 + 4 * 32, abs=16)
            assert reference["tokens"] == pytest.approx(2 * row["tokens_per_candidate"], abs=32)
            assert row["row_steps"] == [2 * 4 * 31] * 2  # the first token of a reply comes from the prompt's pass
        else:
            assert row["tokens_per_candidate"] <= 300 and row["row_steps"] is None
    assert sum(row["auto"] for row in bench["rows"]) == 1 and max(row["of_best"] for row in bench["rows"]) == 1
    assert list(reference["tried"]) == (["512", "1024"] if kind == "teacher-forced" else ["4", "8"])
    assert bench["header"]["versions"]["jax"] and bench["header"]["device_kinds"] and bench["header"]["shapes"]["layers"] == 2


def test_shares_of_a_step_add_up_and_name_the_scopes_of_the_program(taken):
    folder, kind = taken
    noisy, plain = json.loads((folder / "out" / "bench.json").read_text())["steps"]
    assert noisy["what"].startswith("rademacher, ") and plain["what"] == "plain model"
    for step in (noisy, plain):
        shares = step["shares"]
        assert set(shares) == {*scopes.SCOPES, "other"} and sum(shares.values()) == pytest.approx(1)
        assert shares["attention"] > 0 and shares["mlp"] > 0 and shares["head"] > 0
        assert (shares["noise"] > 0) == (step is noisy)
        assert (shares["sample"] > 0) == (kind == "generation")


def test_traces_are_kept_and_hold_the_named_scopes(taken):
    folder, kind = taken
    traces = {path.relative_to(folder / "traces").parts[0]: path for path in (folder / "traces").rglob("*.xplane.pb")}
    assert len(traces) == 2 and f"{kind}-plain" in traces
    del traces[f"{kind}-plain"]
    [noisy] = traces.values()
    for scope in ("embed", "attention", "mlp", "head", "noise", *(["sample"] if kind == "generation" else [])):
        assert re.search(rb"/%s/" % scope.encode(), noisy.read_bytes()), scope


def test_the_innermost_scope_counts_and_most_of_a_fusion():
    text = """
HloModule m
%fused (p: f32[]) -> f32[] {
  %p = f32[] parameter(0)
  %a.1 = f32[] add(%p, %p), metadata={op_name="jit(f)/attention/noise/add"}
  %a.2 = f32[] add(%p, %p), metadata={op_name="jit(f)/attention/noise/add" stack_frame_id=3}
  ROOT %a.3 = f32[] add(%a.1, %a.2), metadata={op_name="jit(f)/attention/mul"}
}

ENTRY %main (x: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %dot.4 = f32[] dot(%x, %x), metadata={op_name="jit(f)/while/body/mlp/dot_general"}
  %copy.5 = f32[] copy(%dot.4)
  ROOT %add_fusion.6 = f32[] fusion(%copy.5), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/attention/mul"}
}
"""
    found = scopes.instruction_scopes(text)
    assert [found[name] for name in ("a.1", "a.3", "dot.4", "copy.5", "add_fusion.6")] == ["noise", "attention", "mlp", "other", "noise"]


def test_time_within_an_operation_is_not_counted_twice(tmp_path):
    """A loop's event spans those of its body: what is left for the loop itself is next to nothing."""

    def looped(x):
        with jax.named_scope("mlp"):
            return jax.lax.fori_loop(0, 200, lambda i, x: jnp.tanh(x @ x), x)

    x = jnp.eye(256)
    program = jax.jit(looped).lower(x).compile()
    program(x).block_until_ready()
    seconds = trace(tmp_path, lambda: program(x).block_until_ready())
    found = scopes.shares(tmp_path, [str(program.as_text())], seconds)
    assert found.shares["mlp"] > 0.5 and 0 < found.covered < 2.2  # two threads at most work at a time


def test_the_reference_is_the_fastest_batch_size_and_not_free(model, monkeypatch):
    monkeypatch.setattr(measure_module, "SLOT_TOKENS", (512, 1024))
    settings = Settings({"gaussian": Noise()}, seed=0, rounds=1, population=3, chunk=8, in_flight=1)
    steps = []
    row = measure(workloads.teacher_forced(model, 300), settings, steps.append)
    assert row.best == max(row.tried, key=lambda size: row.tried[size]) and row.population == 3
    # Examples of as many candidates as fill the largest batch, as data; one candidate's, run several times, XLA would compute once.
    assert len(row.reference.prepared.examples) == 4 * len(row.workload.examples)
    assert row.reference.tokens > 1000
    assert {case.strategy for case in row.cases} == {"lazy", "copy"}
    assert len(steps) == 2 + 2 + 3
    assert any("auto" in line for line in row_lines(row)) and len(document([row], [])["rows"]) == 2


def test_a_benchmark_that_is_stopped_keeps_the_rows_it_has_finished(model, tmp_path, monkeypatch, capsys):
    settings = Settings({"rademacher": Noise("rademacher")}, seed=0, rounds=1, population=2, chunk=2, in_flight=1)
    monkeypatch.setattr(measure_module, "SLOT_TOKENS", (512,))

    def stopped(*_):
        yield measure(workloads.teacher_forced(model, 300), settings, lambda _: None)
        assert "plain model" in capsys.readouterr().out and (tmp_path / "bench.json").exists()  # shown and written as it comes
        raise MemoryError("one candidate at a time does not fit")

    monkeypatch.setattr(commands_bench, "measure_rows", stopped)
    assert main(["bench", "--model", str(MODEL), "--noise", "rademacher", "--out", str(tmp_path)]) != 0
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 2


def _program(layers: int, candidates: int, examples: int) -> str:
    config = DecoderConfig(
        architecture="llama", vocab_size=97, hidden_size=16, intermediate_size=32, num_layers=layers, num_heads=2, num_kv_heads=1,
        head_dim=8, rope_theta=1e4, norm_eps=1e-6, tied_head=True, qkv_bias=False, rope_factors=None, max_positions=512,
    )  # fmt: skip
    params: dict = {}
    for path, shape in param_shapes(config).items():
        *parents, last = path.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = jnp.zeros(shape)
    program = ChunkProgram(
        choice_values(config, single=True), params, Noise("gaussian"), make_mesh(jax.devices()[:1]), candidates, 1, "lazy"
    )
    (packing,) = pack([1, 2, 3], [ScoringExample([4 + i % 50] * 20, [[1], [2]]) for i in range(examples)], slot_tokens=256)
    return program.lower(packing.arrays).as_text()


def test_the_scoring_program_does_not_grow_with_layers_candidates_or_examples():
    """Counted in operations handed to the compiler, which is what its time depends on."""
    # From 8 layers on the last norm is a small part of the model, whose noise is made at once, before the loop over rows.
    sizes = {shape: len(_program(*shape).splitlines()) for shape in ((8, 4, 8), (24, 4, 8), (8, 64, 8), (8, 4, 200))}
    print(sizes)
    assert len(set(sizes.values())) == 1 and sizes[8, 4, 8] > 500


def test_the_programs_compiled_are_those_that_run(model, caplog):
    """``compiled`` is how compile time is taken apart from running; a second compilation in the first run would count it twice."""
    task = load_task("sst2")
    engine = Engine(model, task, Noise("rademacher"), chunk=2, strategy="copy")
    prepared = engine.prepare(task.examples()[:4], task.templates[0])
    engine.compiled(prepared)
    candidates = Population(seed=0, size=2)[:]
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        engine.run(candidates, prepared)
        assert "XLA compilation of jit(_local)" not in caplog.text
        engine.run_plain(prepared)
        assert "XLA compilation of jit(_local)" in caplog.text
