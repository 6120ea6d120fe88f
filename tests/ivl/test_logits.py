"""A base's logits in files: what is stored against numpy, files against the base, trainings from them against live ones."""

import functools
import json
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import write_questions
from support.logits import logits_of
from support.paths import FIXTURES
from support.value_cases import base, live_value, log_softmax, softmax

from perturbjax import ivl
from perturbjax.errors import InputError
from perturbjax.ivl import logits_files, logits_stage, stages
from perturbjax.ivl.logits_files import LogitsFiles
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.ivl.logits_writing import write_missing
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.results import read_results
from perturbjax.pretrained.params import StoredLeaf
from perturbjax.runs.console import Bar, Progress
from perturbjax.sharding import make_mesh
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.rows import pack_rows

BASE = FIXTURES / "tiny_llama_tied"
ROUNDING = 2.0**-8
"""Of bfloat16, relative: half a unit of its last of 8 bits."""


def demonstrations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        EncodedDemonstration(str(i), tuple(rng.integers(0, 384, 2 + i % 5).tolist()), tuple(rng.integers(0, 384, 1 + i % 7).tolist()))
        for i in range(count)
    ]


def files_in(folder, k=None, seed=0, fingerprint="a"):
    return LogitsFiles(folder, LogitsFormat(384, k), pack_rows(demonstrations(24, seed), 16), "tiny", fingerprint, "b")


def write(files, **how):
    write_missing(files, base().config, base().params, make_mesh(jax.devices()[:1]), **how)
    return files


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(logits_files, "SHARD_BYTES", 40_000)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_files, "SHARD_BYTES", 40_000)
        found = {k: write(files_in(tmp_path_factory.mktemp("logits") / "files", k)) for k in (None, 20)}
    assert found[None].shards > 3
    return found


@pytest.fixture(scope="module")
def live():
    """float64 log-probabilities of the base at the learned positions of each row, by whole sequences one after the other."""
    some = demonstrations(24)
    whole = logits_of(base(), [(*d.prompt, *d.response) for d in some])
    by_labels = {(d.prompt, d.response): log_softmax(z[len(d.prompt) - 1 : -1]) for d, z in zip(some, whole, strict=True)}
    rows, found = pack_rows(some, 16), []
    for r in range(len(rows)):
        arrays = {name: array[r] for name, array in rows.arrays.items()}
        there = []
        for segment in range(arrays["segments"].max() + 1):
            tokens = tuple(arrays["tokens"][arrays["segments"] == segment].tolist())
            there.append(next(z for (p, a), z in by_labels.items() if (*p, *a[:-1]) == tokens))
        found.append(np.concatenate(there))
    return found


@functools.cache
def decoder_of(form):
    return jax.jit(form.decode)


def decoded(files, number):
    """log-probabilities that the files give for a row, float64 (learned positions, V)."""
    (logits,) = np.asarray(decoder_of(files.form)(files(np.asarray([number]), np.asarray([True]))))
    return log_softmax(logits[files.learned[number]])


@pytest.mark.parametrize("k", [None, 5, 40])
def test_what_is_stored_of_logits(k):
    rng = np.random.default_rng(0)
    z, labels = rng.normal(0, 4, (2, 3, 40)).astype(np.float32), rng.integers(0, 40, (2, 3))
    form = LogitsFormat(40, k)

    @jax.jit
    def run(z):
        stored = form.encode(z)
        return stored, form.decode(stored), form.errors(z, stored, jnp.asarray(labels))

    stored, back, (kl, label_error) = run(z)
    assert {name: (array.shape[2:], array.dtype) for name, array in stored.items()} == form.arrays
    assert form.nbytes == sum(np.asarray(array)[0, 0].nbytes for array in stored.values())
    z, back = z.astype(np.float64), np.asarray(back, np.float64)
    live, found = log_softmax(z), log_softmax(back)
    others = np.ones(z.shape, bool)
    np.put_along_axis(others, np.argsort(-z, axis=-1)[..., : k or 40], False, -1)
    assert (np.abs(back - z) / np.abs(live))[~others].max() < ROUNDING
    if k == 5:
        rest = back[others].reshape(2, 3, 35)
        assert np.ptp(rest, axis=-1).max() == 0
        total = np.log(np.exp(z).sum(-1, keepdims=True))
        np.testing.assert_allclose(np.exp(rest - total).sum(-1), (softmax(z) * others).sum(-1), rtol=1e-5)
    if k == 40:
        whole = LogitsFormat(40)
        again = jax.jit(lambda z: whole.decode(whole.encode(z)))(z.astype(np.float32))
        np.testing.assert_array_equal(again, back)
    np.testing.assert_allclose(kl, (np.exp(live) * (live - found)).sum(-1), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(label_error, np.abs(np.take_along_axis(live - found, labels[..., None], -1))[..., 0], atol=2e-6)
    assert np.min(kl) > 0


def test_files_hold_what_the_base_says(written, live):
    files, likeliest = written[None], written[20]
    errors, kl = [], []
    for number, wanted in enumerate(live):
        found, labels = decoded(files, number), files.rows.arrays["labels"][number][files.learned[number]]
        assert (np.abs(found - wanted) / (np.abs(wanted) + 1e-3)).max() < 1.1 * ROUNDING
        of_some = decoded(likeliest, number)
        top = np.argsort(-wanted, axis=-1)[:, :20]
        assert np.abs(np.take_along_axis(of_some - wanted, top, -1)).max() < 0.1
        off = np.take_along_axis(wanted - of_some, labels[:, None], -1)
        errors.append(np.abs(off).max())
        kl += (np.exp(wanted) * (wanted - of_some)).sum(-1).tolist()
    summary = likeliest.summary("training")
    assert (summary.positions, summary.k, summary.rows) == (len(kl), 20, "training")
    np.testing.assert_allclose([summary.mean_kl, summary.label_error], [np.mean(kl), max(errors)], rtol=1e-3)
    assert files.summary("training").mean_kl < 1e-3 < summary.mean_kl
    assert sum(path.stat().st_size for path in files.folder.glob("rows-*")) == files.summary("training").nbytes


def test_rows_of_other_processes_are_not_read(written, tmp_path):
    shutil.copytree(written[None].folder, tmp_path / "files")
    files = files_in(tmp_path / "files")
    last = len(files.rows) - 1
    files.path(files.shards - 1).unlink()
    arrays = files(np.asarray([last, 0]), np.asarray([False, True]))
    assert all(not array[0].any() for array in arrays.values())
    whole = written[None](np.asarray([0]), np.asarray([True]))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[1], whole[name][0])
    with pytest.raises(InputError, match="is missing"):
        files(np.asarray([last]), np.asarray([True]))


def test_writing_goes_on_where_it_was_killed(written, tmp_path):
    class Killed(BaseException):
        pass

    def kill(done):
        if done > files.manifest.shard_rows:
            raise Killed

    files = files_in(tmp_path / "files")
    with pytest.raises(Killed):
        write(files, on_rows=kill)
    there = sorted(files.folder.glob("rows-*"))
    assert 0 < len(there) < files.shards
    (files.folder / ".rows-00002.array_record.tmp").write_bytes(b"half a shard")
    before = {path: path.stat().st_mtime_ns for path in there}
    done = []
    write(files_in(tmp_path / "files"), on_rows=done.append)
    assert done[0] == len(there) * files.manifest.shard_rows and done[-1] == len(files.rows)
    assert {path: path.stat().st_mtime_ns for path in there} == before
    content = {path.name: path.read_bytes() for path in files.folder.iterdir()}
    assert content == {path.name: path.read_bytes() for path in written[None].folder.iterdir()}


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda files, other: flipped(files.path(0)), "rows-00000.array_record: damaged"),
        (lambda files, other: files.path(1).write_bytes(files.path(1).read_bytes()[:-70_000]), "it has 0 records of"),
        (lambda files, other: files.path(1).write_bytes(b"rows" * 9999), "it has 0 records of"),
        (lambda files, other: shutil.copy(other.path(0), files.path(0)), "rows-00000.array_record: "),
        (lambda files, other: shutil.copy(files.path(1), files.path(0)), "rows-00000.array_record: is not part of these logits"),
        (lambda files, other: (files.folder / "manifest.json").unlink(), "manifest.json: cannot be read"),
        (lambda files, other: (files.folder / "manifest.json").write_text("{"), "manifest.json: damaged, not JSON"),
        (lambda files, other: shutil.copy(other.folder / "manifest.json", files.folder), r"\(other k, shard_rows\)"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(written, tmp_path, harm, said):
    shutil.copytree(written[None].folder, tmp_path / "files")
    files = files_in(tmp_path / "files")
    assert files.missing() == []
    harm(files, written[20])
    files = files_in(tmp_path / "files")
    with pytest.raises(InputError, match=said) as error:
        write(files)
        for number in range(len(files.rows)):
            files(np.asarray([number]), np.asarray([True]))
    assert f"delete {files.folder} and continue with `resume`" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "rows"), ({"fingerprint": "z"}, "base_fingerprint")])
def test_logits_of_other_rows_or_another_base_are_refused(written, change, named):
    with pytest.raises(InputError, match=rf"holds the logits of another run \(other .*{named}"):
        files_in(written[None].folder, **change).missing()


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options):
            open(path, "wb").close()

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"rows-00000.array_record: cannot be written \(write\(\) failed: No space left"):
        write(files_in(tmp_path / "files"))
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["manifest.json"]


def test_the_loss_of_logits_from_files_is_that_of_the_base_to_bfloat16(written):
    files, model = written[None], base()
    value, params = live_value(model, "multiplicative")
    numbers = np.arange(len(files.rows))
    batch = files.rows.batch(numbers)

    def gradients(loss, frozen, batch):
        def total(params):
            sums = loss(params, frozen, batch)
            return sums["loss"], sums

        return jax.jit(jax.grad(total, has_aux=True))(params)

    live, sums = gradients(value_loss(value, model.config, jnp.float32, 0.1), model.params, batch)
    stored, again = gradients(
        value_loss(value, model.config, jnp.float32, 0.1, cached=files.form), (), batch | files(numbers, np.ones(len(numbers), bool))
    )
    np.testing.assert_allclose([again[name] for name in sums], list(sums.values()), rtol=2e-3)
    assert float(again["norm"]) == pytest.approx(float(sums["norm"]), rel=1e-6)
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (live, stored))
    assert 0 < np.linalg.norm(one - other) < 0.02 * np.linalg.norm(one)


class Watching(Progress):
    """Told of every step of a training: how many bytes JAX holds then, and how many of what was read of the bases' files are alive."""

    def __init__(self):
        super().__init__()
        self.read, self.alive, self.held, self.notes = [], [], [], []

    def note(self, text):
        self.notes.append(text)

    def bar(self, label, total, done=0, unit="candidate"):
        watching = self

        class Watched(Bar):
            def update(self, done, **figures):
                if label == "training":
                    watching.alive.append(sum(part.nbytes for read in watching.read if (part := read()) is not None))
                    watching.held.append(sum(array.nbytes for array in jax.live_arrays()))

        return Watched(self, label, total, done, unit, drawn=False)


class Trained(Exception):
    """Raised in place of the test, when the value network is written."""


def stop(*_):
    raise Trained


def config(folder, logits, resume=False):
    """A training beside two bases, validated beside a third."""
    return ivl.Config(
        ivl.Bases(str(BASE), also=(str(folder / "also"),), held_out=str(folder / "held"), logits=logits),
        ivl.Data(str(folder / "even.jsonl"), validation_examples=4, test_examples=6),
        ivl.Value(layers=1),
        ivl.Training(steps=3, every=1, batch_rows=2, row_tokens=64, learning_rate=0.01),
        ivl.Machine(compile_cache="off"),
        ivl.Run(folder / logits, resume),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a training beside live bases, stopped before the test, and of one from files; what was seen of both."""
    folder = tmp_path_factory.mktemp("runs")
    write_questions(folder / "even.jsonl", 24)
    for name in ("also", "held"):
        shutil.copytree(BASE, folder / name)
    live, stored = Watching(), Watching()
    read = StoredLeaf.__getitem__

    def recorded(leaf, index):
        part = read(leaf, index)
        stored.read.append(weakref.ref(part))
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_files, "SHARD_BYTES", 40_000)
        patch.setattr(StoredLeaf, "__getitem__", recorded)
        ivl.run(config(folder, "whole"), stored)
        patch.setattr(stages, "measure_base", stop)
        with pytest.raises(Trained):
            ivl.run(config(folder, "live"), live)
    return folder, live, stored


def losses_of(run):
    looks = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.asarray([[*look["losses"].values(), *look["validation"].values()] for look in looks])


def test_a_training_from_files_is_that_beside_the_bases(runs):
    folder, _, stored = runs
    live, whole = losses_of(folder / "live"), losses_of(folder / "whole")
    np.testing.assert_allclose(whole, live, rtol=5e-3, atol=1e-6)
    assert whole.shape == (3, 8)
    results = read_results(folder / "whole" / "results.json")
    bases = [("tiny_llama_tied", "training"), ("also", "training"), ("held", "validation")]
    assert [(each.base, each.rows) for each in results.logits] == bases
    assert sorted(path.name for path in (folder / "whole" / "logits").iterdir()) == ["0-training", "1-training", "2-validation"]
    assert any(note.startswith("logits of the base at ") and note.endswith("are free") for note in stored.notes)
    page = (folder / "whole" / "report.html").read_text()
    assert "from files: all tokens at" in page and f"{max(each.label_error for each in results.logits):.2g} nats" in page


def test_no_base_is_in_memory_while_the_value_network_is_trained_from_files(runs):
    folder, live, stored = runs
    params = sum(leaf.nbytes for leaf in jax.tree.leaves(base().params))
    assert min(live.held) - max(stored.held) > 2.5 * params
    # The value network began with some of what was read.
    assert max(stored.alive) <= 4 * read_results(folder / "whole" / "results.json").parameters


def test_a_damaged_file_ends_a_resumed_run_with_one_line_until_it_is_deleted(runs, monkeypatch):
    folder, _, _ = runs
    run = folder / "whole"
    wanted = (run / "value" / "value.safetensors").read_bytes()
    shutil.rmtree(run / "state")
    (run / "results.json").unlink()
    flipped(run / "logits" / "1-training" / "rows-00000.array_record")
    monkeypatch.setattr(stages, "measure_base", stop)
    with pytest.raises(InputError, match=f"delete {run}/logits/1-training and continue with `resume`"):
        ivl.run(config(folder, "whole", resume=True))
    shutil.rmtree(run / "logits" / "1-training")
    with pytest.raises(Trained):
        ivl.run(config(folder, "whole", resume=True))
    assert (run / "value" / "value.safetensors").read_bytes() == wanted


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--logits", "top_k", "--logits-k", "385"], "--logits-k 385: 1 to 384, the size of the base's vocabulary, is required"),
        (["--logits", "top_k", "--logits-k", "0"], "--logits-k 0: an integer of at least 1 is required"),
        (["--logits-k", "4"], "--logits-k 4: only with --logits top_k; with live leave it out"),
        (["--logits", "half"], "--logits"),
        (["--logits", "whole", "--connection", "cascade"], "--logits whole: a cascade reads the base's logits at all positions"),
        (["--logits", "whole"], "1.0 kB are free; use --logits top_k"),
        (["--logits", "top_k", "--logits-k", "3"], "1.0 kB are free; lower --logits-k 3"),
    ],
)
def test_bad_settings_are_one_line_and_make_nothing(tmp_path, capsys, monkeypatch, flags, said):
    monkeypatch.setattr(logits_stage.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    write_questions(tmp_path / "even.jsonl", 24)
    common = ["--base", str(BASE), "--demonstrations", str(tmp_path / "even.jsonl"), "--validation-examples", "4", "--test-examples", "6"]
    more = ["--steps", "1", "--batch-rows", "1", "--row-tokens", "64", "--compile-cache", "off", "--out", str(tmp_path / "run")]
    code, out, err = call(["ivl", *common, *more, *flags], capsys)
    assert code == 2 and out == "" and said in err.splitlines()[-1], err
    assert not (tmp_path / "run").exists()
