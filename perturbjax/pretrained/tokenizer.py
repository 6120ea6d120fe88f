"""Text <-> token ids, and prompts in the model's own chat format: one class for every source of a tokenizer."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import tokenizers

from perturbjax.errors import InputError
from perturbjax.pretrained.chat_template import ChatTemplate

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>")
"""Tokens that end a reply wherever they are special tokens of the vocabulary, whatever the model's metadata names as its one EOS."""

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that a chat template sees under these names, as in transformers."""

Message = Mapping[str, str]
"""One chat turn: ``{"role": "system" | "user" | "assistant", "content": ...}``."""


class Prompt(Protocol):
    """What ``encode_prompts`` reads; ``tasks.Prompt`` is one.

    Attributes:
        messages: chat turns; when empty, ``text`` alone is used.
        text: plain text after the rendered chat, or the whole prompt without messages.
    """

    @property
    def messages(self) -> Sequence[Message]: ...

    @property
    def text(self) -> str: ...


_REPLY = "perturbjax"  # the text of a reply, found again in the rendered chat


class Tokenizer:
    """A model's tokenizer and chat format.

    Attributes:
        vocab_size: one more than the highest token id.
        stop_ids: tokens that end a reply, lowest first: the model's EOS ids and those of ``TURN_ENDS`` that it knows as special tokens.
        pad_id: the id to fill with; its positions are masked, so any valid id does. The model's own where it names one, else a stop id.
        bos_id: the id put before plain text, or None if the model puts none there.
        special_tokens: name -> text, a subset of ``SPECIAL_NAMES``.
        chat_template: the template's source, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        eos_ids: Iterable[int],
        chat_template: str | None,
        name: str,
        tokenizer_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Wraps a ``tokenizers`` backend.

        Args:
            backend: the tokenizer; its post-processor says whether plain text gets a BOS.
            special_tokens: name -> text of those that the model defines.
            eos_ids: the ids that the model's metadata names as ends.
            chat_template: jinja2 source, or None for the plain fallback of ``render_chat``.
            name: the model's name, for errors of the chat template.
            tokenizer_config: the tokenizer_config.json it came with, for export.

        Raises:
            InputError: no stop token at all, an id outside the vocabulary, or a chat template that does not compile.
        """
        # A tokenizer.json may ask for truncation or padding, which would silently change prompts.
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        special_ids = {token.content: index for index, token in backend.get_added_tokens_decoder().items() if token.special}
        self._backend = backend
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.special_tokens = {key: special_tokens[key] for key in SPECIAL_NAMES if key in special_tokens}
        unknown = [f"{key} {text!r}" for key, text in self.special_tokens.items() if text not in vocabulary]
        if unknown:
            raise InputError(f"the tokenizer's {', '.join(unknown)} is not in its vocabulary")
        ends = set(eos_ids) | {vocabulary[text] for key, text in self.special_tokens.items() if key == "eos_token"}
        ends |= {special_ids[text] for text in TURN_ENDS if text in special_ids}
        self.stop_ids = tuple(sorted(ends))
        if not self.stop_ids or not all(0 <= index < self.vocab_size for index in self.stop_ids):
            raise InputError(f"end-of-text ids {list(self.stop_ids)}; at least one is required, all below {self.vocab_size}")
        pad = self.special_tokens.get("pad_token")
        self.pad_id = self.stop_ids[0] if pad is None else vocabulary[pad]
        bos = self.special_tokens.get("bos_token")
        with_specials = backend.encode("", add_special_tokens=True).ids
        self.bos_id = vocabulary[bos] if bos is not None and with_specials[:1] == [vocabulary[bos]] else None
        self._template = None if chat_template is None else ChatTemplate(chat_template, self.special_tokens, name)
        self._tokenizer_config = dict(tokenizer_config or {})

    @property
    def clock(self) -> str | None:
        """The moment that the chat template's ``strftime_now`` formats, ISO 8601; None without a template.

        Llama 3.x writes the date into every prompt, so a run that is resumed on another day sets it to the moment when the run started.
        """
        return None if self._template is None else self._template.clock.isoformat()

    @clock.setter
    def clock(self, moment: str | None) -> None:
        if self._template is not None and moment is not None:
            self._template.clock = datetime.fromisoformat(moment)

    def after_reply(self) -> list[int]:
        """What the chat format writes after a reply; nothing without a template."""
        if self._template is None:
            return []
        chat = self.render_chat([{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}])
        return self.encode(chat.rpartition(_REPLY)[2]) if _REPLY in chat else []

    @property
    def turn_end(self) -> int:
        """The stop token that ends a reply: what the chat format writes there, else the end of a text."""
        eos = self.encode(self.special_tokens.get("eos_token", ""))
        return next((token for token in (*self.after_reply(), *eos) if token in self.stop_ids), self.stop_ids[0])

    @property
    def chat_template(self) -> str | None:
        return None if self._template is None else self._template.source

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens written in the text are recognized, nothing is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens dropped. Bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=True)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The conversation as the model was trained to read it, ending where its reply begins.

        A model without a chat template (a base model) gets the contents alone, each followed by a newline, roles left out.

        Raises:
            InputError: malformed messages, or a template that fails on them.
        """
        if self._template is None:
            return "".join(f"{message['content']}\n" for message in messages)
        return self._template.render([messages])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Of each prompt, ids of the rendered chat followed by ``text``.

        As in transformers, a chat template writes its own BOS, and text without one gets the BOS that the model's tokenizer adds.

        Raises:
            InputError: malformed messages, or a template that fails on them.
        """
        chats = [prompt.messages for prompt in prompts if prompt.messages]
        rendered = iter(map(self.render_chat, chats) if self._template is None else self._template.render(chats))
        bos = [] if self.bos_id is None else [self.bos_id]
        return [
            ([] if prompt.messages and self._template else bos) + self.encode((next(rendered) if prompt.messages else "") + prompt.text)
            for prompt in prompts
        ]

    def to_files(self) -> dict[str, Any]:
        """What ``from_pretrained`` of transformers reads: the contents of tokenizer.json (text) and tokenizer_config.json (dict)."""
        config = {"clean_up_tokenization_spaces": False, "model_max_length": 10**30, "tokenizer_class": "PreTrainedTokenizerFast"}
        config |= self._tokenizer_config | self.special_tokens
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        return {"tokenizer.json": self._backend.to_str(pretty=False), "tokenizer_config.json": config}
