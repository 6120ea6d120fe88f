"""A user's .jsonl: what it becomes, and the line that is named when it is wrong."""

import json
import time
from pathlib import Path

import pytest

from perturbjax.errors import InputError
from perturbjax.tasks import Task, load_task, template_by_name
from perturbjax.tasks.jsonl import JsonlGeneration

NUMERIC = [{"question": "2 + 2 =", "answer": "4"}, {"question": "500 * 2 =", "answer": "1,000"}, {"question": "1 / 2 =", "answer": 0.5}]
WORDS = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "Who wrote Emma?", "answer": "Jane Austen"}]
LABELS = [
    {"question": "What a film!", "answer": "positive", "choices": ["positive", "negative"]},
    {"question": "I left early.", "answer": "negative", "choices": ["negative", "positive"]},
]
OPTIONS = [
    {
        "id": "moon",
        "question": "What orbits the Earth?",
        "answer": "the Moon",
        "choices": ["the Moon", "Mars", "Venus"],
        "source": "ignored",
    },
    {"id": 7, "question": "What is 3 + 4?", "answer": 7, "choices": [6, 7]},
]


def write(path: Path, rows: list[dict], end: str = "\n") -> str:
    path.write_text("".join(json.dumps(row) + end for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.jsonl"


def test_choices_shared_by_all_rows_are_scored_themselves(file: Path) -> None:
    task = load_task(write(file, LABELS))
    assert isinstance(task, Task)
    assert (task.kind, task.name, task.max_new_tokens, task.source) == ("choice", "mine", 0, "mine.jsonl, 2 rows")
    first, second = task.examples()
    assert (first.id, first.answer, first.choices) == ("line-1", "positive", ("positive", "negative"))
    prompt = task.prompt(second, task.templates[0])
    assert prompt.choices == (" negative", " positive")
    assert prompt.messages[-1]["content"].endswith("I left early.") and prompt.text == "Answer:"
    assert task.prompt(second, template_by_name(task, "letters")).choices == (" A", " B")
    assert len(task.templates) >= 4


def test_options_of_each_question_are_scored_by_letter(file: Path) -> None:
    task = load_task(write(file, OPTIONS))
    moon, seven = task.examples()
    assert (moon.id, seven.id) == ("moon", "7")
    assert (seven.answer, seven.choices) == ("7", ("6", "7"))
    prompt = task.prompt(moon, task.templates[0])
    assert prompt.choices == (" A", " B", " C")
    assert prompt.messages[-1]["content"].endswith("What orbits the Earth?\n\nA. the Moon\nB. Mars\nC. Venus")
    assert task.prompt(moon, template_by_name(task, "texts")).choices == (" the Moon", " Mars", " Venus")
    assert task.score("the Moon", moon) == 1.0 and task.score("Mars", moon) == 0.0


def test_without_choices_it_is_a_generation_task(file: Path) -> None:
    task = load_task(write(file, NUMERIC))
    assert isinstance(task, Task) and isinstance(task, JsonlGeneration)
    assert (task.kind, task.numeric, task.max_new_tokens) == ("generation", True, 128)
    assert [e.answer for e in task.examples()] == ["4", "1,000", "0.5"]
    assert len(task.templates) >= 4
    for template in task.templates:
        prompt = task.prompt(task.examples()[0], template)
        assert "2 + 2 =" in (prompt.messages[-1]["content"] if prompt.messages else prompt.text)
        assert prompt.choices == ()
    assert load_task(write(file, WORDS)).numeric is False  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("Answer: 4", "4", "4"),
        ("4", "4", "4"),
        (" $4.00 ", "$4.00", "$4.00"),
        ("Two and two.\nAnswer: 4", "4", "4"),
        ("Two and two.\n**Answer:** 4", "4", "4"),
        ("answer:\n4\n", "4", "4"),
        ("Answer: 3, no.\nAnswer: 4", "4", "4"),
        ("4\nQuestion: 9 + 9 =\nAnswer: 18", "4", "4"),
        ("Two and two is 4.", None, "4"),
        ("Answer: it is 4 apples", None, "4"),
        ("Answer: unclear, 2 + 2 = 5", None, "5"),
        ("2 + 2 = 4\nand done", None, "4"),
        ("four", None, None),
        ("", None, None),
    ],
)
def test_numeric_replies(file: Path, reply: str, strict: str | None, lenient: str | None) -> None:
    task = load_task(write(file, NUMERIC))
    example = task.examples()[0]
    assert task.extract(reply, example) == strict
    assert task.extract(reply, example, strict=False) == lenient
    if lenient in ("4", "$4.00"):
        assert task.score(lenient, example) == 1.0 and task.vote_key(lenient, example) == "4"


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("Paris", "Paris", "Paris"),
        ("  Paris.\n", "Paris", "Paris"),
        ("Answer: Paris", "Paris", "Paris"),
        ('I think so.\n**Answer:** "paris".', "paris", "paris"),
        ("Paris\nQuestion: Capital of Italy?\nAnswer: Rome", "Paris", "Paris"),
        ("It is in the north.\nThe answer is Paris.", None, "Paris"),
        ("It is in the north.\nThe correct answer to this is: Paris", None, "Paris"),
        ("Paris.\nIt lies on the Seine.", None, "Paris"),
        ("...", None, None),
        ("", None, None),
    ],
)
def test_word_replies(file: Path, reply: str, strict: str | None, lenient: str | None) -> None:
    task = load_task(write(file, WORDS))
    example = task.examples()[0]
    assert task.extract(reply, example) == strict
    assert task.extract(reply, example, strict=False) == lenient
    assert task.score(lenient, example) == float(lenient is not None)


def test_equal_answers_have_equal_keys(file: Path) -> None:
    numeric = load_task(write(file, NUMERIC))
    two, thousand, half = numeric.examples()
    assert {numeric.vote_key(a, thousand) for a in ("1000", "1,000", "1000.0", "$1000")} == {"1000"}
    assert numeric.score("$1000.00", thousand) == numeric.score(".5", half) == 1.0
    assert numeric.score("5", two) == numeric.score("4 or 5", two) == numeric.score(None, two) == 0.0
    words = load_task(write(file, WORDS))
    _, emma = words.examples()
    assert {words.vote_key(a, emma) for a in ("Jane Austen", "jane  austen.", "The Jane Austen", '"Jane Austen"')} == {"jane austen"}
    assert words.score("Austen", emma) == 0.0
    assert words.vote_key("the", emma) == "the"


REACTIONS = [
    {"question": "Reactants: c1ccccc1.BrBr\nProduct?", "answer": "Brc1ccccc1", "match": "exact"},
    {"question": "Reactants: CC(=O)O.[Na+].[OH-]\nProduct?", "answer": "CC(=O)[O-].[Na+]", "match": "exact"},
    {"question": "Reactants: C1CCCCC1=O.[H][H]\nProduct?", "answer": "O C 1 C C C C C 1", "match": "exact"},
]


def test_reactions_are_compared_as_they_are_written(file: Path) -> None:
    """SMILES as in USPTO: case is chemistry, and brackets at the ends belong to atoms."""
    task = load_task(write(file, REACTIONS))
    benzene, salt, spaced = task.examples()
    assert task.kind == "generation" and task.score(benzene.answer, benzene) == 1.0
    for reply, example, score in (
        ("It is brominated.\nAnswer: Brc1ccccc1", benzene, 1.0),
        ("**Answer:** `Brc1ccccc1`.", benzene, 1.0),
        ("Brc1ccccc1", benzene, 1.0),
        ("Answer: BrC1CCCCC1", benzene, 0.0),
        ("Answer: brc1ccccc1", benzene, 0.0),
        ("Answer: CC(=O)[O-].[Na+]", salt, 1.0),
        ("Answer: CC(=O)[O-].Na+", salt, 0.0),
        ("Answer: CC(=O)[O-].[Na+", salt, 0.0),
        ("O C 1 C  C C C C 1", spaced, 1.0),
    ):
        answer = task.extract(reply, example)
        assert answer is not None and task.score(answer, example) == score, reply
        assert task.vote_key(task.vote_key(answer, example), example) == task.vote_key(answer, example)
    assert task.extract("So the answer is Brc1ccccc1\nbecause", benzene, strict=False) == "Brc1ccccc1"
    assert load_task(write(file, [{"question": "q", "answer": "1", "match": "exact"}])).score("1.0", task.examples()[0]) == 0.0


def test_story_endings_are_chosen_or_told(file: Path) -> None:
    """ROCStories: two endings to choose from, by letter or as texts; or an ending of one's own, which only an equal one matches."""
    story = "Ana planted a seed. It did not rain for weeks. How does it end?"
    endings = ["She watered it every day.", "She ate the rain."]
    task = load_task(write(file, [{"question": story, "answer": endings[0], "choices": endings}, *OPTIONS[:1]]))
    example = task.examples()[0]
    assert task.prompt(example, task.templates[0]).choices == (" A", " B")
    texts = task.prompt(example, template_by_name(task, "texts"))
    assert texts.choices == tuple(f" {ending}" for ending in endings) and texts.messages[-1]["content"].endswith(story)
    assert task.score(endings[0], example) == 1.0 and task.score(endings[1], example) == 0.0
    told = load_task(write(file, [{"question": story, "answer": endings[0]}]))
    assert told.score(told.extract("she watered it every day", told.examples()[0]), told.examples()[0]) == 1.0


@pytest.mark.parametrize(
    "unit", ["answer", "answer ", "answer:", "Answer: 1\n", "answer is ", "\n", "\nQuestion:", "9", "1,", " ", ".", "a "]
)
def test_a_million_characters_are_neither_an_error_nor_slow(file: Path, unit: str) -> None:
    reply = unit * (1_000_000 // len(unit))
    for rows in (NUMERIC, WORDS):
        task = load_task(write(file, rows))
        start = time.process_time()
        for strict in (True, False):
            assert task.score(task.extract(reply, task.examples()[0], strict), task.examples()[0]) == 0.0
        assert time.process_time() - start < 5


def test_what_editors_and_json_allow(file: Path) -> None:
    """A byte-order mark, CRLF, empty lines, U+2028 inside a string, null for an optional field."""
    lines = [
        '{"question": "one\u2028two", "answer": "a"}',
        "",
        '  {"question": "x", "answer": "b", "choices": null, "id": null}  ',
        " ",
    ]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    first, second = load_task(str(file)).examples()
    assert (first.id, first.question, second.id) == ("line-1", "one\u2028two", "line-3")


GOOD = '{"question": "q", "answer": "a"}'
EXACT = '{"question": "q", "answer": "a", "match": "exact"}'
CHOICE = '{"question": "q", "answer": "a", "choices": ["a", "b"]}'


@pytest.mark.parametrize(
    ("lines", "number", "complaint"),
    [
        ([GOOD, "{"], 2, "not valid JSON"),
        ([GOOD, "", '{"question": "q", "answer": "a"'], 3, "not valid JSON"),
        ([GOOD, GOOD + GOOD], 2, "not valid JSON"),
        (["{'question': 'q', 'answer': 'a'}"], 1, "not valid JSON"),
        (["[" * 100_000], 1, "not valid JSON"),
        (['{"question": "q", "answer": ' + "9" * 5000 + "}"], 1, "not valid JSON"),
        (['["q", "a"]'], 1, '["q", "a"]: an object is required'),
        (['"q"'], 1, '"q": an object is required'),
        (["null"], 1, "null: an object is required"),
        ([GOOD, '{"question": "q"}'], 2, "answer is missing"),
        ([GOOD, '{"answer": "a"}'], 2, "question is missing"),
        (['{"Question": "q", "answer": "a"}'], 1, "question is missing"),
        (['{"question": "", "answer": "a"}'], 1, 'question "": a text that is not empty'),
        (['{"question": "q", "answer": "  "}'], 1, 'answer "  ": a text that is not empty'),
        (['{"question": 5, "answer": "a"}'], 1, "question 5: text is required"),
        (['{"question": null, "answer": "a"}'], 1, "question null: text is required"),
        (['{"question": "q", "answer": null}'], 1, "answer null: text or an integer or a finite number"),
        (['{"question": "q", "answer": true}'], 1, "answer true: text or an integer or a finite number"),
        (['{"question": "q", "answer": NaN}'], 1, "answer NaN: text or an integer or a finite number"),
        (['{"question": "q", "answer": Infinity}'], 1, "answer Infinity: text or an integer or a finite number"),
        (['{"question": "q", "answer": ' + "9" * 400 + "}"], 1, "text or an integer or a finite number"),
        (['{"question": "q", "answer": ["a"]}'], 1, 'answer ["a"]: text or an integer or a finite number'),
        (['{"question": "q", "answer": "a", "id": {}}'], 1, "id {}: text or an integer or a finite number"),
        (['{"question": "\\ud800", "answer": "a"}'], 1, "surrogate"),
        ([CHOICE, '{"question": "q", "answer": "c", "choices": ["a", "b"]}'], 2, 'answer "c": one of its choices (a, b)'),
        (['{"question": "q", "answer": "a", "choices": "ab"}'], 1, 'choices "ab": a list'),
        (['{"question": "q", "answer": "a", "choices": []}'], 1, "choices []: 2 to 26 choices"),
        (['{"question": "q", "answer": "a", "choices": ["a"]}'], 1, 'choices ["a"]: 2 to 26 choices'),
        ([json.dumps({"question": "q", "answer": "0", "choices": list(range(27))})], 1, "2 to 26 choices"),
        (['{"question": "q", "answer": "a", "choices": ["a", null]}'], 1, "choices[1] null: text or an integer or a finite number"),
        (['{"question": "q", "answer": "a", "choices": ["a", ""]}'], 1, 'choices[1] "": a text that is not empty'),
        (['{"question": "q", "answer": "a", "choices": ["a", "b", "a "]}'], 1, "every choice may occur once"),
        ([CHOICE, GOOD], 2, "choices is missing, unlike line 1"),
        (["", GOOD, CHOICE], 3, "choices is given, unlike line 2"),
        ([EXACT, GOOD], 2, "match is missing, unlike line 1; give it on every line or on none"),
        ([GOOD, EXACT], 2, "match is given, unlike line 1"),
        (['{"question": "q", "answer": "a", "match": "words"}'], 1, 'match "words": exact or null is required'),
        ([CHOICE[:-1] + ', "match": "exact"}'], 1, 'match "exact": a question with choices is answered by one of them'),
        (
            ['{"question": "q", "answer": "a", "id": "x"}', "", '{"question": "r", "answer": "a", "id": "x"}'],
            3,
            'id "x": line 1 has it',
        ),
        ([GOOD, '{"question": "r", "answer": "a", "id": "line-1"}'], 2, 'id "line-1": line 1 has it'),
        (['{"question": "r", "answer": "a", "id": 1}', '{"question": "q", "answer": "a", "id": "1"}'], 2, 'id "1": line 1 has it'),
    ],
)
def test_a_bad_line_is_named(file: Path, lines: list[str], number: int, complaint: str) -> None:
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_task(str(file))
    message = str(caught.value)
    assert message.startswith(f"task '{file}': line {number}: ") and complaint in message
    assert "\n" not in message


def test_bytes_that_are_not_utf8_are_named_by_line(file: Path) -> None:
    file.write_bytes(f"{GOOD}\n".encode() + b'{"question": "caf\xe9", "answer": "a"}\n')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        load_task(str(file))
    file.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(InputError, match="line 1: not UTF-8"):
        load_task(str(file))


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n\r\n", "\ufeff"])
def test_a_file_without_rows_is_refused(file: Path, content: str) -> None:
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="no rows; give one object a line"):
        load_task(str(file))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl': the file cannot be read \(.*No such file"):
        load_task(str(tmp_path / "missing.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl': the file cannot be read"):
        load_task(str(tmp_path / "folder.jsonl"))
    with pytest.raises(InputError, match="the file cannot be read"):
        load_task("nul\0.jsonl")
