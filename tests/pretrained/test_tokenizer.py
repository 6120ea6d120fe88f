"""Tokenizers and chat templates: equal to transformers on stored references, and safe against templates that misbehave."""

import json
import shutil
import subprocess
import sys
import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_gguf import FIXTURES

from perturbjax.errors import InputError
from perturbjax.pretrained import chat_process, load_model
from perturbjax.pretrained.chat_template import ChatTemplate
from perturbjax.tasks.base import Prompt

TEMPLATE_ROWS = json.loads((FIXTURES / "chat_templates.json").read_text())["rows"]
USER = ({"role": "user", "content": "hi"},)


@cache
def loaded(name):
    """(tokenizer, what transformers made of the same one)."""
    smollm2 = name == "smollm2-135m"
    reference = FIXTURES / ("smollm2_reference.json" if smollm2 else f"{name}/reference.json")
    return load_model(name if smollm2 else str(FIXTURES / name)).tokenizer, json.loads(reference.read_text())


@pytest.fixture(params=["tiny_llama3", "tiny_qwen2", "smollm2-135m"])
def tokenizer_and_reference(request):
    return loaded(request.param)


def test_texts_equal_transformers(tokenizer_and_reference):
    tokenizer, reference = tokenizer_and_reference
    assert len(reference["texts"]) >= 40
    for row in reference["texts"]:
        assert tokenizer.encode(row["text"]) == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"]) == row["decoded"], row["text"]
        assert tokenizer.encode_prompts([Prompt((), row["text"])])[0] == row["prompt_ids"], row["text"]


def test_chats_equal_transformers(tokenizer_and_reference):
    tokenizer, reference = tokenizer_and_reference
    for row in reference["chats"]:
        assert tokenizer.render_chat(row["messages"]) == row["rendered"], row["name"]
        assert tokenizer.encode_prompts([Prompt(tuple(row["messages"]))])[0] == row["ids"], row["name"]


def test_text_after_the_chat_is_part_of_one_string():
    tokenizer, reference = loaded("smollm2-135m")
    chat = reference["chats"][0]
    prompt = Prompt(tuple(chat["messages"]), "Answer: 12")
    assert tokenizer.encode_prompts([prompt])[0] == tokenizer.encode(chat["rendered"] + "Answer: 12")


def test_stop_pad_and_bos_ids():
    smollm2 = loaded("smollm2-135m")[0]
    assert (smollm2.stop_ids, smollm2.pad_id, smollm2.bos_id, smollm2.vocab_size) == ((0, 2), 2, None, 49152)
    assert smollm2.encode("<|endoftext|><|im_end|>") == [0, 2]
    llama = loaded("tiny_llama3")[0]
    assert llama.stop_ids == tuple(sorted(llama.encode("<|end_of_text|><|eot_id|>")))
    assert [llama.bos_id] == llama.encode("<|bos|>") and llama.pad_id in llama.stop_ids
    qwen = loaded("tiny_qwen2")[0]
    assert qwen.bos_id is None and [qwen.pad_id] == qwen.encode("<|endoftext|>")
    assert qwen.stop_ids == tuple(sorted(qwen.encode("<|im_end|><|endoftext|>")))


@given(text=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=60))
def test_text_survives_the_round_trip(text):
    """Byte-level BPE loses nothing, as long as the text spells no special token (they all start with "<")."""
    tokenizer = loaded("tiny_llama3")[0]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= index < tokenizer.vocab_size for index in ids)


# SmolLM2's vocabulary has no token for these bytes; here as in transformers they vanish.
@given(
    text=st.text(
        st.characters(exclude_characters="<\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF, exclude_categories=["Cs"]), max_size=60
    )
)
def test_text_survives_the_round_trip_through_smollm2(text):
    tokenizer = loaded("smollm2-135m")[0]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(f"a\x04{text}")) == f"a{text}"


@given(left=st.text(max_size=20), right=st.text(max_size=20))
def test_special_tokens_are_whole_and_dropped_by_decode(left, right):
    tokenizer = loaded("smollm2-135m")[0]
    ids = tokenizer.encode(f"{left}<|im_end|>{right}")
    assert 2 in ids
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(left)) + tokenizer.decode(tokenizer.encode(right))


@pytest.mark.parametrize("row", TEMPLATE_ROWS, ids=lambda row: row["name"])
def test_templates_render_as_in_transformers(row):
    assert ChatTemplate(row["source"], row["variables"], "x").render([row["messages"]]) == [row["rendered"]]


def test_a_run_does_not_see_the_clock_move():
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}", {}, "x")
    (first,) = template.render([USER])
    time.sleep(0.002)
    assert template.render([USER]) == [first] and first.startswith("20")


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("{{ raise_exception('only users here') }}", "only users here"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ 'x' * 10 ** 7 * 10 ** 7 }}", "MemoryError"),
        ("{{ ([1] * 10 ** 9) | length }}", "MemoryError"),
        ("{{ messages[0].content | center(10 ** 9) }}", "MemoryError"),
        ("{{ messages[0].content.ljust(10 ** 9) }}", "MemoryError"),
        ("{{ '%1000000000d' % 5 }}", "MemoryError"),
        ("{{ '{:>1000000000}'.format(messages[0].content) }}", "MemoryError"),
        ("{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}", "MemoryError"),
        ("{{ 'x' * 20000000 }}", "a text of more than 10000000 characters"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
    ],
)
def test_templates_that_misbehave(source, fragment):
    with pytest.raises(InputError, match=fragment) as caught:
        ChatTemplate(source, {}, "m").render([USER])
    assert str(caught.value).startswith("model 'm': the chat template failed") and "\n" not in str(caught.value)


THREE_LOOPS = "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        THREE_LOOPS,
        "{{ (7 * messages | length) ** 100000000 }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_templates_that_take_too_long_are_ended_and_others_are_rendered_after_them(source):
    good, start = ChatTemplate("{{ messages[0].content }}", {}, "g"), time.perf_counter()
    assert good.render([USER, USER]) == ["hi", "hi"]
    with pytest.raises(InputError, match=r"^model 'm': the chat template failed: it took more than 1 s and 512 MiB, or") as caught:
        ChatTemplate(source, {}, "m").render([USER])
    assert "\n" not in str(caught.value) and time.perf_counter() - start < 20
    assert good.render([USER]) == ["hi"]


def test_a_template_that_takes_too_long_to_compile():
    with pytest.raises(InputError, match="the chat template does not compile: "):
        ChatTemplate("{{ 'x' | center(1000000000) }}{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", {}, "m")


def test_each_conversation_has_the_whole_time():
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}{{ messages[0].content }}", {}, "x")
    chats = [[{"role": "user", "content": str(n)}] for n in range(600)]
    assert ChatTemplate("{{ messages[0].content }}", {}, "x").render(chats) == [str(n) for n in range(600)]
    assert template.render(chats[:3]) == ["0", "1", "2"]


def test_the_process_that_renders_sees_nothing_of_the_package():
    program = "import sys, runpy; sys.stdin = []; runpy.run_path(sys.argv[1], run_name='__main__'); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program, chat_process.__file__], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_template_that_does_not_compile():
    with pytest.raises(InputError, match="does not compile"):
        ChatTemplate("{% if %}", {}, "m")


@pytest.mark.parametrize("messages", [[{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": None}]])
def test_messages_need_role_and_content(messages):
    with pytest.raises(InputError, match="'role' and 'content'"):
        loaded("tiny_qwen2")[0].render_chat(messages)


def tokenizer_of(tmp_path, fixture="tiny_llama3", drop=(), **settings):
    """The fixture's tokenizer with other settings in tokenizer_config.json and without the files in ``drop``."""
    directory = shutil.copytree(FIXTURES / fixture, tmp_path / "m")
    for name in drop:
        (directory / name).unlink()
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return load_model(str(directory)).tokenizer


def test_without_a_template_contents_follow_each_other(tmp_path):
    tokenizer = tokenizer_of(tmp_path, drop=["chat_template.jinja"])
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"})
    assert tokenizer.chat_template is None
    assert tokenizer.render_chat(chat) == "Be brief.\nHi?\n"
    assert tokenizer.encode_prompts([Prompt(chat, "A:")])[0] == [tokenizer.bos_id, *tokenizer.encode("Be brief.\nHi?\nA:")]


def test_templates_in_the_config_and_named_templates(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ messages[0].content }}"}]
    assert tokenizer_of(tmp_path / "a", drop=["chat_template.jinja"], chat_template=named).render_chat(USER) == "Dhi"
    assert tokenizer_of(tmp_path / "b", drop=["chat_template.jinja"], chat_template="C").render_chat(USER) == "C"
    assert tokenizer_of(tmp_path / "c", chat_template="C").render_chat(USER) != "C"


def test_an_explicit_bos_setting_overrules_the_file(tmp_path):
    assert tokenizer_of(tmp_path / "a", add_bos_token=False).bos_id is None
    bos = {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokenizer = tokenizer_of(tmp_path / "b", "tiny_qwen2", add_bos_token=True, bos_token=bos)
    assert tokenizer.encode_prompts([Prompt((), "x")])[0] == tokenizer.encode("<|im_start|>x")
    assert tokenizer.special_tokens["bos_token"] == "<|im_start|>"


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path):
    directory = shutil.copytree(FIXTURES / "tiny_qwen2", tmp_path / "m")
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    path.write_text(json.dumps(raw))
    text = "one two three four five six"
    assert load_model(str(directory)).tokenizer.encode(text) == loaded("tiny_qwen2")[0].encode(text)


def test_a_model_without_any_end_token(tmp_path):
    directory = shutil.copytree(FIXTURES / "tiny_qwen2", tmp_path / "m")
    (directory / "generation_config.json").unlink()
    (directory / "tokenizer_config.json").write_text("{}")
    raw = json.loads((directory / "tokenizer.json").read_text())
    raw["added_tokens"] = []
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="at least one is required"):
        load_model(str(directory))


def test_a_special_token_outside_the_vocabulary(tmp_path):
    with pytest.raises(InputError, match=r"eos_token '<nope>' is not in its vocabulary"):
        tokenizer_of(tmp_path, eos_token="<nope>")
