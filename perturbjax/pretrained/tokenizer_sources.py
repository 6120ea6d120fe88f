"""Where tokenizers come from: a Hugging Face directory's files, or the metadata of a GGUF file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from perturbjax.errors import InputError
from perturbjax.pretrained.chat_template import one_line
from perturbjax.pretrained.tokenizer import SPECIAL_NAMES, Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
"""``tokenizer.ggml.token_type`` of tokens matched whole: special ones, and plain ones such as ``<think>``."""

# The ids that a GGUF file may name, and what transformers calls the token ("" where it has no name for it).
_SPECIAL_IDS = {"bos": "bos_token", "eos": "eos_token", "eot": "", "unknown": "unk_token", "padding": "pad_token"}

_LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS = ("smollm", "llama-bpe", "qwen2")


def tokenizer_from_directory(directory: Path, config: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory: tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json.

    Args:
        directory: the model's directory.
        config: its parsed config.json, for ``eos_token_id``.
        where: names the directory in errors.

    Raises:
        InputError: no tokenizer.json, or one that cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        fix = "save it there with AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
        raise InputError(f"{where}: tokenizer.json is missing; {fix}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # The tokenizers library raises bare Exception for whatever it cannot parse.
    except Exception as error:
        raise InputError(f"{where}: tokenizer.json cannot be read: {one_line(error)}") from error
    settings = read_json(directory / "tokenizer_config.json", where, {})
    legacy = read_json(directory / "special_tokens_map.json", where, {})
    generation = read_json(directory / "generation_config.json", where, {})
    special_tokens = {name: text for name in SPECIAL_NAMES if (text := _token_text(name, settings.get(name, legacy.get(name)), where))}
    _apply_bos_setting(backend, settings, special_tokens)
    return Tokenizer(
        backend,
        special_tokens=special_tokens,
        eos_ids=_ids(generation.get("eos_token_id"), where) + _ids(config.get("eos_token_id"), where),
        chat_template=_template_text(directory, settings, where),
        where=where,
        tokenizer_config={key: value for key, value in settings.items() if key not in ("chat_template", "added_tokens_decoder")},
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The byte-level BPE tokenizer that a GGUF file describes.

    Args:
        metadata: the file's key-value pairs, read.
        where: names the file in errors.

    Raises:
        InputError: another kind of tokenizer or pre-tokenizer, or inconsistent metadata.
    """

    def get(name: str, kind: type, element: type = object) -> Any:
        value = metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(item, element) for item in value)):
            raise InputError(f"{where}: metadata tokenizer.ggml.{name} is missing, or no {kind.__name__} of the right kind")
        return value

    if get("model", str) != "gpt2":
        fix = "only byte-level BPE ('gpt2') is; use the Hugging Face directory instead"
        raise InputError(f"{where}: tokenizer model {get('model', str)!r} is not supported, {fix}")
    tokens, kinds, kind = get("tokens", list, str), get("token_type", list, int), get("pre", str)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in get("merges", list, str)]
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        counts = f"{len(tokens)} tokens, {len(vocabulary)} distinct, {len(kinds)} types"
        raise InputError(f"{where}: tokenizer metadata is inconsistent: {counts}")
    special_ids = {name: metadata[key] for name in _SPECIAL_IDS if (key := f"tokenizer.ggml.{name}_token_id") in metadata}
    for name, index in special_ids.items():
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise InputError(f"{where}: tokenizer.ggml.{name}_token_id {index!r} lies outside the {len(tokens)} tokens")
    special_tokens = {text: tokens[special_ids[name]] for name, text in _SPECIAL_IDS.items() if name in special_ids and text}
    backend = _byte_level_bpe(vocabulary, merges, kind, where)
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [AddedToken(token, normalized=False, special=special) for token, has in zip(tokens, kinds, strict=True) if has == wanted]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)
    # llama.cpp and the released tokenizer.json of Llama 3 add BOS where the file does not say.
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama-bpe") and "bos_token" in special_tokens:
        backend.post_processor = _bos_processor(special_tokens["bos_token"], vocabulary)
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise InputError(f"{where}: metadata tokenizer.chat_template must be a text")
    eos_ids = [special_ids[name] for name in ("eos", "eot") if name in special_ids]
    return Tokenizer(backend, special_tokens=special_tokens, eos_ids=eos_ids, chat_template=template, where=where)


def read_json(path: Path, where: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object from a file; ``default`` if there is no such file. Raises ``InputError`` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is None:
            raise InputError(f"{where}: {path.name} is missing") from None
        return default
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {path.name} cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {path.name} must hold a JSON object, not a {type(value).__name__}")
    return value


def _byte_level_bpe(vocabulary: dict[str, int], merges: Sequence[Any], kind: str, where: str) -> tokenizers.Tokenizer:
    try:
        # Llama 3 takes a whole word that is in the vocabulary before trying merges, as tiktoken does.
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=kind == "llama-bpe"))
    # The tokenizers library raises bare Exception.
    except Exception as error:
        raise InputError(f"{where}: the tokenizer's merges do not fit its tokens: {one_line(error)}") from error
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        before: list[Any] = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    elif kind in _PRE_TOKENIZERS:
        split = Regex(_LLAMA3_SPLIT if kind == "llama-bpe" else _QWEN2_SPLIT)
        before = [pre_tokenizers.Split(split, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        raise InputError(f"{where}: pre-tokenizer {kind!r} is not supported; supported are {', '.join(_PRE_TOKENIZERS)}")
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(before)
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


def _token_text(name: str, value: Any, where: str) -> str | None:
    # Written as text, or as a serialised AddedToken.
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str | None):
        raise InputError(f"{where}: {name} {value!r} in the tokenizer's files must be a text")
    return text


def _template_text(directory: Path, settings: Mapping[str, Any], where: str) -> str | None:
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        template = settings.get("chat_template")
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: chat_template.jinja cannot be read: {one_line(error)}") from error
    if isinstance(template, list):
        # Several named ones: the one for plain conversations counts.
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str | None):
        raise InputError(f"{where}: chat_template in tokenizer_config.json must be a text, or a list of named texts")
    return template


def _ids(value: Any, where: str) -> list[int]:
    ids = [] if value is None else list(value) if isinstance(value, list) else [value]
    if not all(isinstance(index, int) for index in ids):
        raise InputError(f"{where}: eos_token_id {value!r} must be a token id or a list of them")
    return ids
