"""What the tokens of a vocabulary are, apart from how their tokenizer writes them: byte strings, and the roles of special tokens.

One byte string is written in many ways: GPT-2's alphabet has a character for each byte (a space is "Ġ"), SentencePiece marks spaces with
"▁" and falls back to tokens such as "<0x0A>". Vocabularies are compared by bytes. Special tokens have none: their text is an accident of
their model ("<|endoftext|>" ends a text here and fills a batch there), so they are compared by role.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perturbjax.tree import digest

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer

TURN_END, TEXT_END, TURN_START = "turn_end", "text_end", "turn_start"
"""Roles that a tokenizer does not name: what ends a reply in the model's chat format (without one: its EOS), every other stop token, and
what opens the next turn."""

_NAMED = ("bos_token", "unk_token", "sep_token", "cls_token", "mask_token", "pad_token")
_SPACE = "▁"
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokens of one tokenizer by id: V places, the ids that no token has among them.

    Attributes:
        texts: (V,) bytes of each token; None for special tokens and for ids that no token has.
        ids: bytes -> the id that the tokenizer itself would write. Two tokens can have the same bytes ("A" and "<0x41>"): the one that is
            no byte fallback is meant, then the lower id.
        special: id -> text of the special tokens.
        roles: id -> role of the special tokens that have one; one role each, the first that fits of turn end, text end, turn start, bos,
            unk, sep, cls, mask, pad. So a pad that also ends replies is no partner of a pad that does not.
        vocabulary: sha256 over the ordered tokens: equal where every id means the same.
        fingerprint: sha256 over the ordered tokens and the roles.
    """

    texts: tuple[bytes | None, ...]
    ids: Mapping[bytes, int]
    special: Mapping[int, str]
    roles: Mapping[int, str]
    vocabulary: str
    fingerprint: str

    @property
    def size(self) -> int:
        """V, one more than the highest id."""
        return len(self.texts)

    @property
    def valid(self) -> tuple[bool, ...]:
        """(V,) which ids a token has, special ones included."""
        return tuple(text is not None or index in self.special for index, text in enumerate(self.texts))

    def readable(self, index: int) -> str:
        """A token as people read it: bytes that are no UTF-8 as backslash escapes, special tokens as they are written."""
        text = self.texts[index]
        return self.special.get(index, f"(no token {index})") if text is None else text.decode(errors="backslashreplace")


_TABLES: weakref.WeakKeyDictionary[Tokenizer, TokenTable] = weakref.WeakKeyDictionary()


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """The tokens of a tokenizer; read once for each tokenizer object (about a second for 150,000 tokens).

    Raises:
        ValueError: a tokenizer whose tokens have no bytes of their own: WordPiece, and BPE with marks inside words.
        InputError: its chat template fails on a conversation of two turns.
    """
    table = _TABLES.get(tokenizer)
    if table is None:
        table = _TABLES[tokenizer] = _read(tokenizer)
    return table


def _read(tokenizer: Tokenizer) -> TokenTable:
    content = json.loads(tokenizer.to_files()["tokenizer.json"])
    model, added = content["model"], content["added_tokens"]
    # Unigram models list [text, score] in the order of the ids.
    stored = model["vocab"] if isinstance(model["vocab"], dict) else {entry[0]: index for index, entry in enumerate(model["vocab"])}
    stored_form, normalized_form = _canonical(content)
    found = {index: stored_form(text) for text, index in stored.items()}
    # Added tokens are looked for in the text as it is, or in the normalized one: before anything turns bytes into characters.
    found |= {
        token["id"]: (normalized_form(token["content"]) if token["normalized"] else token["content"].encode(), False) for token in added
    }
    named_ids = stored | {token["content"]: token["id"] for token in added}
    # In order of precedence: the role that is written last stays.
    named = {named_ids[text]: name.removesuffix("_token") for name in reversed(_NAMED) if (text := tokenizer.special_tokens.get(name))}
    roles = named | _ends(tokenizer, {token["id"] for token in added if token["special"]})
    names = {index: text for text, index in named_ids.items()}
    # "<unk>" and its like may be ordinary entries of the vocabulary: their role makes them special.
    special = {token["id"]: token["content"] for token in added if token["special"]} | {index: names[index] for index in roles}

    texts: list[bytes | None] = [None] * tokenizer.vocab_size
    rank: dict[bytes, tuple[bool, int]] = {}
    for index, (text, is_fallback) in found.items():
        if index not in special:
            texts[index] = text
            rank[text] = min(rank.get(text, (True, len(texts))), (is_fallback, index))
    listed = [["special", special[i]] if i in special else None if text is None else text.hex() for i, text in enumerate(texts)]
    return TokenTable(
        texts=tuple(texts),
        ids={text: index for text, (_, index) in rank.items() if text},
        special=special,
        roles=roles,
        vocabulary=digest(listed),
        fingerprint=digest([listed, sorted(roles.items())]),
    )


def _canonical(content: Mapping[str, Any]) -> tuple[Callable[[str], tuple[bytes, bool]], Callable[[str], bytes]]:
    """How the text of a token of the vocabulary becomes (its bytes, whether it is a byte fallback), and normalized text its bytes."""
    model = content["model"]
    if model["type"] == "WordPiece" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        kinds = "byte-level BPE, BPE and Unigram with marked spaces, and word lists are supported"
        raise ValueError(f"tokenizer: the tokens of a {model['type']} model with marks inside words are no byte strings; {kinds}")
    parts = list(_components([content[key] for key in ("normalizer", "pre_tokenizer", "decoder")]))
    kinds = {part["type"] for part in parts}
    byte_level = "ByteLevel" in kinds
    marked = "Metaspace" in kinds or any(
        _SPACE in (part["content"], part["pattern"].get("String")) for part in parts if part["type"] == "Replace"
    )
    fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds

    def normalized_form(text: str) -> bytes:
        return (text.replace(_SPACE, " ") if marked else text).encode()

    def stored_form(text: str) -> tuple[bytes, bool]:
        if byte_level and all(character in _BYTE_OF for character in text):
            return bytes(_BYTE_OF[character] for character in text), False
        if fallback and (match := _FALLBACK.fullmatch(text)):
            return bytes([int(match[1], 16)]), True
        return normalized_form(text), False

    return stored_form, normalized_form


def _components(part: Any) -> Iterator[dict[str, Any]]:
    """Every normalizer, pre-tokenizer and decoder in a part of tokenizer.json, sequences opened."""
    if isinstance(part, list):
        for item in part:
            yield from _components(item)
    elif isinstance(part, dict):
        yield part
        yield from _components([value for value in part.values() if isinstance(value, list)])


def _ends(tokenizer: Tokenizer, special: set[int]) -> dict[int, str]:
    """id -> role of the stop tokens, and of what opens a turn where the chat format shows it."""
    openers = [index for index in tokenizer.after_reply() if index in special and index not in tokenizer.stop_ids]
    return dict.fromkeys(openers[:1], TURN_START) | dict.fromkeys(tokenizer.stop_ids, TEXT_END) | {tokenizer.turn_end: TURN_END}


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_of()
