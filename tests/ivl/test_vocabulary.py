"""Vocabulary maps: application against the dense matrix, the exact-first builder on real small tokenizers, statistics, files."""

import hashlib
import io
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from support.paths import FIXTURES
from support.tiny_tokenizers import CORPUS, byte_level, marked_spaces, permuted, wrapped
from tokenizers import AddedToken, models, pre_tokenizers

from perturbjax.errors import InputError
from perturbjax.ivl.alignment import exact_first
from perturbjax.ivl.byte_head import byte_map
from perturbjax.ivl.map_files import ARRAYS, RECORD, load_map, save_map
from perturbjax.ivl.map_statistics import Matches, statistics
from perturbjax.ivl.tokens import TEXT_END, TURN_END, TURN_START, token_table
from perturbjax.ivl.vocabulary import VocabularyMap, identity
from perturbjax.pretrained import load_model


@cache
def plain():
    return byte_level(420)


@cache
def with_digits():
    return byte_level(420, digits=True)


@cache
def shuffled():
    return permuted(plain(), np.random.default_rng(0).permutation(plain().vocab_size).tolist())


def partners(vocabulary_map, value, base, text):
    """Token of V -> weight, of one token of B; both as people read them."""
    value, base = token_table(value), token_table(base)
    row = next(index for index in range(base.size) if base.readable(index) == text)
    pairs = zip(vocabulary_map.indices[row].tolist(), vocabulary_map.weights[row].tolist(), strict=True)
    return {value.readable(index): weight for index, weight in pairs if weight > 0}


def random_map(rng, rows=50, columns=37, entries=4, holes=()):
    valid = np.ones(columns, bool)
    valid[list(holes)] = False
    indices = rng.choice(np.flatnonzero(valid), (rows, entries)).astype(np.int32)
    weights = (rng.random((rows, entries)) * (rng.random((rows, entries)) < 0.5)).astype(np.float32)
    return VocabularyMap("exact_first", indices, weights, np.zeros(rows, bool), valid, "v", "b")


def dense_change(vocabulary_map, z):
    """The formula in float64: W (z - mean z), the mean over V's tokens."""
    z = np.asarray(z, np.float64)[..., : vocabulary_map.value_size]
    centered = z - z[..., vocabulary_map.valid].mean(axis=-1, keepdims=True)
    # 0 * inf of an id without token is no part of the formula.
    centered = np.where(vocabulary_map.valid, centered, 0.0)
    return centered @ vocabulary_map.dense().astype(np.float64).T


@pytest.mark.parametrize(("entries", "holes", "shape"), [(1, (), ()), (2, (0, 5, 36), (3,)), (4, (), (2, 3)), (4, (0, 5, 36), ())])
def test_apply_equals_the_dense_matrix(entries, holes, shape):
    rng = np.random.default_rng(entries)
    vocabulary_map = random_map(rng, entries=entries, holes=holes)
    z = rng.normal(size=(*shape, 40)).astype(np.float32) * 5  # three more than V has tokens
    expected = dense_change(vocabulary_map, z)
    change, padded = jax.jit(lambda z: (vocabulary_map.apply(z), vocabulary_map.apply(z, 64)))(z)
    np.testing.assert_allclose(change, expected, atol=1e-5)
    # Two programs of one sum: XLA adds the entries of an id in an order of its own in each.
    np.testing.assert_allclose(padded[..., :50], change, rtol=1e-6, atol=1e-6)
    assert padded.shape == (*shape, 64) and not padded[..., 50:].any()


def test_apply_under_vmap_and_grad():
    rng = np.random.default_rng(1)
    vocabulary_map = random_map(rng, holes=(3,))
    apply = jax.jit(vocabulary_map.apply)
    z = jnp.asarray(rng.normal(size=(5, 37)), jnp.float32)
    np.testing.assert_array_equal(jax.vmap(apply)(z), apply(z))
    cotangent = rng.normal(size=(5, 50)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(vocabulary_map.apply(z) * cotangent)))(z)
    # The transpose of W (I - 1 valid / n).
    back = cotangent.astype(np.float64) @ vocabulary_map.dense()
    expected = np.where(vocabulary_map.valid, back - back.sum(axis=-1, keepdims=True) / 36, 0.0)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_apply_does_not_read_ids_without_token():
    vocabulary_map = random_map(np.random.default_rng(2), holes=(3,))
    z = jnp.zeros(40).at[3].set(jnp.nan).at[38].set(jnp.inf)
    assert np.isfinite(vocabulary_map.apply(z)).all()


def test_apply_keeps_the_dtype_and_sums_in_float32():
    vocabulary_map = random_map(np.random.default_rng(3))
    z = jnp.asarray(np.random.default_rng(4).normal(size=(4, 37)), jnp.bfloat16)
    change = vocabulary_map.apply(z)
    assert change.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(change), np.asarray(vocabulary_map.apply(z.astype(jnp.float32)).astype(jnp.bfloat16)))


def test_a_constant_changes_nothing_and_the_map_folds_into_the_head():
    vocabulary_map = random_map(np.random.default_rng(5))
    rng = np.random.default_rng(6)
    hidden, head = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(8, 37)).astype(np.float32)
    change = vocabulary_map.apply(jnp.asarray(hidden @ head))
    np.testing.assert_allclose(vocabulary_map.apply(jnp.asarray(hidden @ head + 7)), change, atol=1e-5)
    np.testing.assert_allclose(hidden @ np.asarray(vocabulary_map.apply(jnp.asarray(head))), change, atol=1e-4)


def test_apply_refuses_other_sizes():
    vocabulary_map = random_map(np.random.default_rng(7))
    with pytest.raises(ValueError, match="z has 36 logits: at least the 37"):
        vocabulary_map.apply(jnp.zeros(36))
    with pytest.raises(ValueError, match="size 49: at least the 50"):
        vocabulary_map.apply(jnp.zeros(37), 49)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("indices", np.zeros((50, 4), np.int64), "indices int64"),
        ("indices", np.full((50, 4), 37, np.int32), "indices from 37 to 37: 0 to 36"),
        ("indices", np.full((50, 4), -1, np.int32), "indices from -1"),
        ("indices", np.zeros((50, 5), np.int32), "R from 1 to 4"),
        ("weights", np.full((50, 4), np.nan, np.float32), "weights: finite"),
        ("weights", np.full((50, 4), -1, np.float32), "weights: finite"),
        ("weights", np.ones((49, 4), np.float32), r"weights \(49, 4\)"),
        ("exact", np.zeros(49, bool), r"exact \(49,\)"),
        ("valid", np.zeros(37, bool), "valid: at least one"),
    ],
)
def test_a_map_checks_its_arrays(field, value, message):
    good = random_map(np.random.default_rng(8))
    arrays = {name: getattr(good, name) for name in ("indices", "weights", "exact", "valid")}
    with pytest.raises(ValueError, match=message):
        VocabularyMap("exact_first", **(arrays | {field: value}), value_fingerprint="v", base_fingerprint="b")


def test_identity_adds_the_logits_themselves():
    vocabulary_map = identity(plain(), plain())
    size = plain().vocab_size
    z = jnp.asarray(np.random.default_rng(9).normal(size=(2, size + 4)), jnp.float32)
    np.testing.assert_array_equal(vocabulary_map.apply(z, size + 4), z)
    np.testing.assert_array_equal(vocabulary_map.apply(z), z[:, :size])
    wider = vocabulary_map.apply(z, size + 9)
    np.testing.assert_array_equal(wider[:, :size], z[:, :size])
    assert not wider[:, size:].any()
    assert "gather" not in str(jax.make_jaxpr(lambda z: vocabulary_map.apply(z, size + 9))(z))


def test_identity_needs_the_same_ids_but_not_the_same_roles():
    with pytest.raises(ValueError, match=r"the vocabularies differ .* use exact_first"):
        identity(shuffled(), plain())
    base_model = byte_level(420, chat=None, eos=("<|endoftext|>",))
    ours, theirs = token_table(base_model), token_table(plain())
    assert ours.vocabulary == theirs.vocabulary and ours.fingerprint != theirs.fingerprint
    assert identity(base_model, plain()).kind == "identity"


def test_a_permuted_vocabulary_is_recovered():
    """Same model, ids renamed: the combined distribution is the same."""
    value, base = shuffled(), plain()
    vocabulary_map = exact_first(value, base)
    seen = sorted({index for text in CORPUS for index in base.encode(text)})
    text_of = token_table(value).texts
    recovered = [text_of[vocabulary_map.indices[u, 0]] == token_table(base).texts[u] for u in seen]
    assert np.mean(recovered) >= 0.99 and vocabulary_map.exact[seen].mean() >= 0.99
    assert vocabulary_map.indices.shape == (base.vocab_size, 1) and vocabulary_map.exact.all()
    rng = np.random.default_rng(10)
    z_base, z_value = rng.normal(size=(8, base.vocab_size)) * 3, rng.normal(size=(8, base.vocab_size)) * 3
    renamed = np.empty_like(z_value)
    order = np.random.default_rng(0).permutation(base.vocab_size)
    renamed[:, order] = z_value
    combined = jax.nn.softmax(z_base + vocabulary_map.apply(jnp.asarray(renamed, jnp.float32)).astype(jnp.float32), axis=-1)
    assert np.abs(combined - jax.nn.softmax(z_base + z_value, axis=-1)).max() <= 1e-5


def test_pieces_weigh_nine_tenths_and_a_tenth_of_the_one_before():
    characters = marked_spaces(["th", "e", "irst"])
    vocabulary_map = exact_first(characters, plain())
    # " the" as " " + "th" + "e", the token that V would write first dominates.
    assert partners(vocabulary_map, characters, plain(), " the") == pytest.approx({" ": 1 / 1.11, "th": 0.1 / 1.11, "e": 0.01 / 1.11})
    assert partners(vocabulary_map, characters, plain(), "irst") == {"irst": 1.0}
    np.testing.assert_allclose(vocabulary_map.weights.sum(axis=1), vocabulary_map.matched, atol=1e-6)


def test_longer_tokens_keep_four_pieces_and_repeated_ones_add_up():
    value, base = byte_level(259), plain()
    vocabulary_map = exact_first(value, base)
    assert vocabulary_map.indices.shape[1] == 4
    total = 1.111
    assert partners(vocabulary_map, value, base, " token") == pytest.approx(
        {" ": 1 / total, "t": 0.1 / total, "o": 0.01 / total, "k": 0.001 / total}
    )
    assert partners(vocabulary_map, value, base, "99") == {"9": pytest.approx(1.0)}


def test_numbers_survive_in_both_directions():
    split, joined = with_digits(), plain()
    numbers = [text for text in token_table(joined).texts if text and text.strip().isdigit() and len(text.strip()) > 1]
    assert len(numbers) >= 10 and not any(text and text.isdigit() and len(text) > 1 for text in token_table(split).texts)
    to_joined = exact_first(split, joined)
    for number in map(bytes.decode, numbers):
        found = partners(to_joined, split, joined, number)
        assert "".join(found) == "".join(dict.fromkeys(number))[: len("".join(found))]
        assert found[number[0]] >= 0.9
    to_split = exact_first(joined, split)
    for digit in "0123456789":
        assert partners(to_split, joined, split, digit) == {digit: 1.0}


def test_space_marks_and_byte_fallbacks_are_unified():
    value, base = marked_spaces(["▁the", "▁quick", "the", "<", "0", "x", "A"]), plain()
    vocabulary_map = exact_first(value, base)
    assert partners(vocabulary_map, value, base, " the") == {" the": 1.0}
    assert partners(vocabulary_map, value, base, "the") == {"the": 1.0}
    table, rows = token_table(value), token_table(base)
    for byte in (0x0A, 0x09, 0xE6, 0xFF):
        row = rows.ids[bytes([byte])]
        assert vocabulary_map.exact[row] and value.to_files()["tokenizer.json"].count(f"<0x{byte:02X}>")
        assert table.texts[vocabulary_map.indices[row, 0]] == bytes([byte])
    # A character that is a token is meant, not its byte: V never writes <0x41>.
    assert vocabulary_map.indices[rows.ids[b"A"], 0] == value.encode("xA")[-1] != 3 + 0x41
    # Bytes that are no UTF-8 are covered one by one.
    back = exact_first(byte_level(260), byte_level(420, corpus=["東京 東京 東京 東北 東海"]))
    assert back.matched.all()


def test_added_tokens_are_plain_text():
    """A character such as é in an added token of a byte-level vocabulary is two bytes, though it also stands for one byte there."""
    backend = tokenizers.Tokenizer.from_str(plain().to_files()["tokenizer.json"])
    backend.add_tokens([AddedToken("é+", normalized=True), AddedToken("<think>", normalized=False)])
    value = wrapped(backend, None, ("<|im_end|>",), None)
    table = token_table(value)
    assert table.texts[-2:] == ("é+".encode(), b"<think>") and not {len(table.texts) - 1, len(table.texts) - 2} & set(table.special)
    assert exact_first(plain(), value).matched[-2:].all()


def test_unigram_vocabularies():
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("t", -3.0), ("h", -3.0), ("e", -3.0)]
    backend = tokenizers.Tokenizer(models.Unigram(words, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    value = wrapped(backend, {"unk_token": "<unk>"}, ("</s>",), None)
    table = token_table(value)
    # "<s>" is no special token of this one: nothing says so.
    assert table.texts == (None, b"<s>", None, b" the", b" ", b"t", b"h", b"e") and table.roles == {0: "unk", 2: TURN_END}
    vocabulary_map = exact_first(value, plain())
    assert partners(vocabulary_map, value, plain(), " the") == {" the": 1.0}
    # V's tokenizer puts a space in front of "he", which is none of the token: covered from the left instead.
    assert partners(vocabulary_map, value, plain(), "he") == pytest.approx({"h": 1 / 1.1, "e": 0.1 / 1.1})


def test_word_pieces_are_refused():
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="WordPiece model with marks inside words"):
        token_table(wrapped(backend, None, ("a",), None))


def test_special_tokens_are_matched_by_role():
    value = byte_level(400, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim|>"))
    # <|im_start|> is in another role here, <|fim|> has none.
    base = byte_level(
        420,
        special=("<|im_start|>", "<|eot|>", "<|pad|>", "<|go|>", "<|fim|>"),
        names={"bos_token": "<|go|>", "pad_token": "<|pad|>"},
        eos=("<|eot|>", "<|im_start|>"),
        chat="{% for m in messages %}<|go|>{{m['content']}}<|eot|>{% endfor %}<|go|>",
    )
    assert token_table(value).roles == {0: TEXT_END, 1: TURN_START, 2: TURN_END}
    assert token_table(base).roles == {0: TEXT_END, 1: TURN_END, 2: "pad", 3: TURN_START}
    vocabulary_map = exact_first(value, base)
    found = [partners(vocabulary_map, value, base, text) for text in ("<|im_start|>", "<|eot|>", "<|pad|>", "<|go|>", "<|fim|>")]
    assert found == [{"<|endoftext|>": 1.0}, {"<|im_end|>": 1.0}, {}, {"<|im_start|>": 1.0}, {}]


def test_every_stop_token_has_a_partner():
    one_stop, two_stops = marked_spaces(["▁the"]), plain()
    to_two, to_one = exact_first(one_stop, two_stops), exact_first(two_stops, one_stop)
    assert partners(to_two, one_stop, two_stops, "<|im_end|>") == partners(to_two, one_stop, two_stops, "<|endoftext|>") == {"</s>": 1.0}
    assert partners(to_one, two_stops, one_stop, "</s>") == {"<|im_end|>": 1.0}


def test_text_that_spells_a_special_token_is_no_special_token():
    value = byte_level(300)
    base = byte_level(420, special=("<|end|>",), eos=("<|end|>",), chat=None, words=False, corpus=["<|im_end|> <|im_end|>\n"] * 4)
    assert "<|im_end|>" in map(token_table(base).readable, range(base.vocab_size))
    found = partners(exact_first(value, base), value, base, "<|im_end|>")
    assert "<|im_end|>" not in found and max(found, key=lambda text: found[text]) == "<"


def test_real_tokenizers_of_the_fixtures():
    llama, qwen = (load_model(str(FIXTURES / name)).tokenizer for name in ("tiny_llama3", "tiny_qwen2"))
    vocabulary_map = exact_first(llama, qwen)
    assert partners(vocabulary_map, llama, qwen, "<|im_end|>") == {"<|eot_id|>": 1.0}
    assert partners(vocabulary_map, llama, qwen, "<|endoftext|>") == {"<|end_of_text|>": 1.0}
    assert vocabulary_map.matched.all() and vocabulary_map.exact.mean() > 0.9


def test_statistics_count_what_is_lost():
    value, base = with_digits(), plain()
    vocabulary_map, table = exact_first(value, base), token_table(base)
    probs = np.zeros((2, base.vocab_size + 3))
    probs[0, table.ids[b" 250"]] = 0.75
    probs[0, table.ids[b"a"]] = 0.25
    probs[1, table.ids[b"a"]] = 0.5
    probs[1, -1] = 0.5  # padding has no partner
    value_probs = np.full((1, value.vocab_size), 1 / value.vocab_size)
    found = statistics(vocabulary_map, value, base, base_probs=probs, value_probs=value_probs, worst=3)
    numbers = sum(1 for text in table.texts if text and text.strip().isdigit() and len(text.removeprefix(b" ")) > 1)
    assert found.numbers == Matches(0, numbers, 0) and numbers >= 10
    # " 1" and " 2" are tokens of B alone.
    assert found.single_digits == Matches(10, 2, 0)
    assert found.exact == pytest.approx(vocabulary_map.exact.mean()) and found.none == 0.0 and found.tokens == base.vocab_size
    assert found.base_mass is not None and found.value_mass is not None
    assert (found.base_mass.exact, found.base_mass.partial, found.base_mass.none) == pytest.approx((0.375, 0.375, 0.25))
    (worst,) = found.base_mass.worst
    assert (worst.token, worst.mass, worst.partners[0]) == (" 250", 0.375, " ")
    used = np.unique(vocabulary_map.indices[vocabulary_map.weights > 0])
    assert found.value_mass.none == pytest.approx(1 - len(used) / value.vocab_size)
    assert [example.token for example in found.number_examples] == [table.readable(i) for i in range(420) if _is_number(table.texts[i])][:3]


def _is_number(text):
    return text is not None and text.removeprefix(b" ").isdigit() and len(text.removeprefix(b" ")) > 1


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.ones((2, 5)) / 5, r"base_probs \(2, 5\)"),
        (np.ones((1, 420)), "sum to 1"),
        (np.zeros((0, 420)), "N of at least 1"),
    ],
)
def test_statistics_refuse_what_is_no_distribution(probs, message):
    with pytest.raises(ValueError, match=message):
        statistics(identity(plain(), plain()), plain(), plain(), base_probs=probs)


@pytest.mark.parametrize("kind", ["identity", "exact_first", "byte"])
def test_maps_survive_the_round_trip(tmp_path, kind):
    value = {"identity": plain, "exact_first": with_digits, "byte": lambda: None}[kind]()
    built = byte_map(plain()) if value is None else identity(value, plain()) if kind == "identity" else exact_first(value, plain())
    saved_statistics = None if value is None else statistics(built, value, plain())
    save_map(built, tmp_path, saved_statistics)
    loaded, loaded_statistics = load_map(tmp_path, value, plain())
    assert loaded_statistics == saved_statistics and loaded.kind == kind
    for name in ("indices", "weights", "exact", "valid"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(built, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ARRAYS, RECORD])


def replace_arrays(folder, **changes):
    """Other arrays under a checksum that fits."""
    with np.load(folder / ARRAYS) as file:
        arrays = dict(file) | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    replace_bytes(folder, buffer.getvalue())


def replace_bytes(folder, data):
    (folder / ARRAYS).write_bytes(data)
    change_record(folder, arrays_sha256=hashlib.sha256(data).hexdigest())


def change_record(folder, **changes):
    (folder / RECORD).write_text(json.dumps(json.loads((folder / RECORD).read_text()) | changes))


DAMAGE = {
    "no record": (lambda folder: (folder / RECORD).unlink(), "cannot be read"),
    "no arrays": (lambda folder: (folder / ARRAYS).unlink(), "cannot be read"),
    "cut off": (lambda folder: (folder / ARRAYS).write_bytes((folder / ARRAYS).read_bytes()[:-9]), "checksum"),
    "one bit": (lambda folder: flip(folder / ARRAYS), "checksum"),
    "no JSON": (lambda folder: (folder / RECORD).write_text("{"), "not JSON"),
    "other version": (lambda folder: change_record(folder, version=2), "version 2"),
    "unknown kind": (lambda folder: change_record(folder, kind="magic"), "kind"),
    "no archive": (lambda folder: replace_bytes(folder, b"nothing"), "damaged"),
    "pickled": (lambda folder: replace_arrays(folder, indices=np.array([{}], object)), "damaged"),
    "an array missing": (lambda folder: replace_arrays(folder, exact=None), "are required"),
    "out of range": (lambda folder: replace_arrays(folder, indices=np.full((420, 4), 10**6, np.int32)), "indices from"),
    "other dtype": (lambda folder: replace_arrays(folder, weights=np.ones((420, 4))), "float32"),
    "infinite": (lambda folder: replace_arrays(folder, weights=np.full((420, 4), np.inf, np.float32)), "finite"),
    "fewer rows": (lambda folder: replace_arrays(folder, exact=np.zeros(3, bool)), "required"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_refused_in_one_line(tmp_path, case):
    save_map(exact_first(byte_level(260), plain()), tmp_path)
    damage, message = DAMAGE[case]
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_map(tmp_path, byte_level(260), plain())
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_maps_of_other_tokenizers_are_refused(tmp_path):
    save_map(exact_first(with_digits(), plain()), tmp_path)
    with pytest.raises(InputError, match=r"another tokenizer of the value network, sha256:.*build the map anew") as caught:
        load_map(tmp_path, plain(), plain())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="another tokenizer of the base"):
        load_map(tmp_path, with_digits(), shuffled())
    with pytest.raises(InputError, match="kind exact_first: no tokenizer of the value network"):
        load_map(tmp_path, None, plain())
    # Other roles of the same tokens make another map, but the same identity.
    base_model = byte_level(420, chat=None, eos=("<|endoftext|>",))
    with pytest.raises(InputError, match="another tokenizer of the base"):
        load_map(tmp_path, with_digits(), base_model)
    save_map(identity(plain(), plain()), tmp_path)
    assert load_map(tmp_path, base_model, plain())[0].kind == "identity"
