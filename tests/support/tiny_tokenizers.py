"""Real tokenizers of a few hundred tokens, trained in a moment."""

import json
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from perturbjax.pretrained.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog while the other dogs sleep in the warm afternoon sun",
    "a model of language predicts the next token from the tokens before it, and a value network changes what it predicts",
    "In 2024 the 12 teams scored 100, 250 and 1999 points; 12 + 250 = 262, and 1999 - 100 = 1899.",
    "def add(first, second):\n    return first + second\n\nprint(add(12, 250))\n",
    "naïve café, Übergröße, 東京 and 🙂: bytes beyond ASCII",
] * 4

CHAT = (
    "{% for m in messages %}{{'<|open|>' + m['role'] + '\n' + m['content'] + '<|close|>\n'}}{% endfor %}{{'<|open|>assistant\n'}}"
    .replace("open", "im_start").replace("close", "im_end")
)  # fmt: skip


def byte_level(
    size: int = 420,
    *,
    digits: bool = False,
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    names: Mapping[str, str] | None = None,
    eos: Sequence[str] = ("<|im_end|>",),
    chat: str | None = CHAT,
    words: bool = True,
    corpus: Sequence[str] = CORPUS,
) -> Tokenizer:
    """Byte-level BPE of up to ``size`` tokens, special ones first.

    Args:
        digits: every digit is a token of its own.
        words: tokens do not reach beyond GPT-2's words.
        names: of special tokens, as in tokenizer_config.json.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    to_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    split = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, to_characters])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in special],
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return wrapped(backend, names, eos, chat)


def marked_spaces(words: Sequence[str], special: Sequence[str] = ("<unk>", "<s>", "</s>")) -> Tokenizer:
    """As Llama 2: "▁" for spaces, one in front of every text, byte fallback; the tokens are single characters and these words."""
    letters = sorted({character for word in words for character in word})
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    model = models.BPE(
        vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return wrapped(backend, {key: text for key, text in names.items() if text in special}, ("</s>",), None)


def permuted(tokenizer: Tokenizer, order: Sequence[int]) -> Tokenizer:
    """The same tokenizer with id i renamed to order[i]."""
    files = tokenizer.to_files()
    content = json.loads(files["tokenizer.json"])
    content["model"]["vocab"] = {token: int(order[index]) for token, index in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = int(order[token["id"]])
    content["added_tokens"].sort(key=lambda token: token["id"])
    names = {key: text for key, text in files["tokenizer_config.json"].items() if key.endswith("_token")}
    return wrapped(tokenizers.Tokenizer.from_str(json.dumps(content)), names, (), tokenizer.chat_template)


def wrapped(backend: tokenizers.Tokenizer, names: Mapping[str, str] | None, eos: Sequence[str], chat: str | None) -> Tokenizer:
    special = {"eos_token": eos[0]} if eos else {}
    ends = [index for text in eos if (index := backend.token_to_id(text)) is not None]
    return Tokenizer(backend, special_tokens=special | dict(names or {}), eos_ids=ends, chat_template=chat, name="tiny")
