"""Where tokenizers come from: a Hugging Face directory's files, or the metadata of a GGUF file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from perturbjax.errors import InputError, one_line
from perturbjax.pretrained.files import read_json
from perturbjax.pretrained.tokenizer import SPECIAL_NAMES, Tokenizer
from perturbjax.records import read_text

_CONTROL, _USER_DEFINED = 3, 4
"""``tokenizer.ggml.token_type`` of tokens matched whole: special ones, and plain ones such as ``<think>``."""

# The ids that a GGUF file may name, and what transformers calls the token ("" where it has no name for it).
_SPECIAL_IDS = {"bos": "bos_token", "eos": "eos_token", "eot": "", "unknown": "unk_token", "padding": "pad_token"}

_LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class _PreTokenizer:
    """What a value of ``tokenizer.ggml.pre`` stands for.

    Attributes:
        split: builds what splits text into words before its bytes are mapped to characters.
        gpt2_words: GPT-2's pattern splits the pieces further.
        whole_words: a word that is in the vocabulary is one token, whatever the merges say (as in tiktoken).
        nfc: text is normalized to Unicode NFC first.
        adds_bos: plain text gets a BOS where the file does not say, as in llama.cpp and the released tokenizer.json.
    """

    split: Callable[[], pre_tokenizers.PreTokenizer]
    gpt2_words: bool = False
    whole_words: bool = False
    nfc: bool = False
    adds_bos: bool = False


_PRE_TOKENIZERS = {
    "smollm": _PreTokenizer(lambda: pre_tokenizers.Digits(individual_digits=True), gpt2_words=True),
    "llama-bpe": _PreTokenizer(lambda: pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"), whole_words=True, adds_bos=True),
    # What llama.cpp calls OLMo 2's: Llama 3's split without its whole words.
    "dbrx": _PreTokenizer(lambda: pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")),
    "qwen2": _PreTokenizer(lambda: pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"), nfc=True),
}
"""Every supported pre-tokenizer of GGUF files, by its name there."""


def tokenizer_from_directory(directory: Path, config: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory: tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json.

    Args:
        directory: the model's directory.
        config: its parsed config.json, for ``eos_token_id``.
        name: the model's name.

    Raises:
        InputError: no tokenizer.json, or one that cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        fix = "save it there with AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
        raise InputError(f"tokenizer.json is missing; {fix}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # The tokenizers library raises bare Exception for whatever it cannot parse.
    except Exception as error:
        raise InputError(f"tokenizer.json cannot be read: {one_line(error)}") from error
    settings = read_json(directory / "tokenizer_config.json", {})
    legacy = read_json(directory / "special_tokens_map.json", {})
    generation = read_json(directory / "generation_config.json", {})
    special_tokens = {key: text for key in SPECIAL_NAMES if (text := _token_text(key, settings.get(key, legacy.get(key))))}
    _apply_bos_setting(backend, settings, special_tokens)
    return Tokenizer(
        backend,
        special_tokens=special_tokens,
        eos_ids=_ids(generation.get("eos_token_id")) + _ids(config.get("eos_token_id")),
        chat_template=_template_text(directory, settings),
        name=name,
        tokenizer_config={key: value for key, value in settings.items() if key not in ("chat_template", "added_tokens_decoder")},
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """The byte-level BPE tokenizer that a GGUF file describes.

    Args:
        metadata: the file's key-value pairs, read.
        name: the model's name.

    Raises:
        InputError: another kind of tokenizer or pre-tokenizer, or inconsistent metadata.
    """

    def get(key: str, kind: type, element: type = object) -> Any:
        value = metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(item, element) for item in value)):
            raise InputError(f"metadata tokenizer.ggml.{key} is missing, or no {kind.__name__} of the right kind")
        return value

    if get("model", str) != "gpt2":
        fix = "only byte-level BPE ('gpt2') is; use the Hugging Face directory instead"
        raise InputError(f"tokenizer model {get('model', str)!r} is not supported, {fix}")
    tokens, kinds = get("tokens", list, str), get("token_type", list, int)
    pre_tokenizer = _PRE_TOKENIZERS.get(get("pre", str))
    if pre_tokenizer is None:
        raise InputError(f"pre-tokenizer {get('pre', str)!r} is not supported; supported are {', '.join(_PRE_TOKENIZERS)}")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in get("merges", list, str)]
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        raise InputError(f"tokenizer metadata is inconsistent: {len(tokens)} tokens, {len(vocabulary)} distinct, {len(kinds)} types")
    special_ids = _special_ids(metadata, len(tokens))
    special_tokens = {text: tokens[special_ids[key]] for key, text in _SPECIAL_IDS.items() if key in special_ids and text}
    backend = _byte_level_bpe(vocabulary, merges, pre_tokenizer)
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [AddedToken(token, normalized=False, special=special) for token, has in zip(tokens, kinds, strict=True) if has == wanted]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)
    if metadata.get("tokenizer.ggml.add_bos_token", pre_tokenizer.adds_bos) and "bos_token" in special_tokens:
        backend.post_processor = _bos_processor(special_tokens["bos_token"], vocabulary)
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise InputError("metadata tokenizer.chat_template must be a text")
    eos_ids = [special_ids[key] for key in ("eos", "eot") if key in special_ids]
    return Tokenizer(backend, special_tokens=special_tokens, eos_ids=eos_ids, chat_template=template, name=name)


def _special_ids(metadata: Mapping[str, Any], size: int) -> dict[str, int]:
    """Key of ``_SPECIAL_IDS`` -> the token id that the file names under it."""
    ids = {key: metadata[name] for key in _SPECIAL_IDS if (name := f"tokenizer.ggml.{key}_token_id") in metadata}
    for key, index in ids.items():
        if not isinstance(index, int) or not 0 <= index < size:
            raise InputError(f"tokenizer.ggml.{key}_token_id {index!r} lies outside the {size} tokens")
    return ids


def _byte_level_bpe(vocabulary: dict[str, int], merges: Sequence[Any], pre_tokenizer: _PreTokenizer) -> tokenizers.Tokenizer:
    try:
        model = models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=pre_tokenizer.whole_words)
    # The tokenizers library raises bare Exception.
    except Exception as error:
        raise InputError(f"the tokenizer's merges do not fit its tokens: {one_line(error)}") from error
    backend = tokenizers.Tokenizer(model)
    to_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer.gpt2_words)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer.split(), to_characters])
    if pre_tokenizer.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _bos_processor(bos: str, vocabulary: Mapping[str, int]) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])])


def _apply_bos_setting(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    # As in transformers, an explicit setting overrules the post-processor in tokenizer.json.
    if settings.get("add_bos_token") and "bos_token" in special_tokens:
        bos = special_tokens["bos_token"]
        backend.post_processor = _bos_processor(bos, backend.get_vocab(with_added_tokens=True))
    elif settings.get("add_bos_token") is False:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])


def _token_text(name: str, value: Any) -> str | None:
    # Written as text, or as a serialized AddedToken.
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str | None):
        raise InputError(f"{name} {value!r} in the tokenizer's files must be a text")
    return text


def _template_text(directory: Path, settings: Mapping[str, Any]) -> str | None:
    try:
        return read_text(directory / "chat_template.jinja")
    except FileNotFoundError:
        template = settings.get("chat_template")
    except (OSError, ValueError) as error:
        raise InputError(f"chat_template.jinja cannot be read: {one_line(error)}") from error
    if isinstance(template, list):
        # Several named ones: the default one is for plain conversations.
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str | None):
        raise InputError("chat_template in tokenizer_config.json must be a text, or a list of named texts")
    return template


def _ids(value: Any) -> list[int]:
    ids = [] if value is None else list(value) if isinstance(value, list) else [value]
    if not all(isinstance(index, int) for index in ids):
        raise InputError(f"eos_token_id {value!r} must be a token id or a list of them")
    return ids
