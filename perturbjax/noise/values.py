"""The noise specification: a perturbation is a pure function of (key, leaf path, flat index).

Nothing here knows about batches, meshes, kernels or models, so every other way to make the same noise (a scan's slice, an embedding row, a
shard, a kernel's tile) needs only an index map onto these functions: a ``Block``. Golden values are pinned in the tests; changing them is a
breaking change.

Keys
    root key: ``jax.random.key(seed, impl="threefry2x32")``; candidate key: ``fold_in(root, index)``;
    leaf key: ``fold_in(candidate_key, crc32(path))`` with the path joined by "/". Keys travel as raw ``uint32[2]`` data.

Values (flat index n, C order)
    gaussian: ``jax.random.normal(leaf_key, shape, float32).ravel()[n]``, bit for bit.
    rademacher: one bit a weight. The leaf is viewed as (B, R, C) = (leading dims, second-to-last or 1, last); element (b, r, c) is +1 if
    bit ``r % 32`` of word ``(b * ceil(R / 32) + r // 32) * C + c`` of ``jax.random.bits(leaf_key, ...)`` is set, else -1.
    low rank r: E = A B^T / sqrt(r), A (..., R, r) and B (..., C, r) from the leaf key folded with 1 and 2 (``low_rank``); leaves of less
    than two dims stay dense.

Why own threefry rounds: XLA:CPU lowers ``jax.random.bits`` to rolled loops over whole arrays. The same rounds unrolled in jnp on iota
counters fuse with whatever consumes the noise; ``scripts/bench_noise.py`` prints the ratio. With partitionable threefry (JAX's default)
word n is ``x0 ^ x1`` of the block with counter (n >> 32, n & 0xffffffff), a function of n alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt32

from perturbjax import _compat
from perturbjax.noise.block import Block, Slice
from perturbjax.noise.erf_inv import erf_inv
from perturbjax.tree import path_hash

KEY_IMPL = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
KeyData = UInt32[Array, "2"]
"""Raw data of a threefry2x32 key."""
WORD_BITS = 32
"""Bits of one word of the generator: so many rows of a leaf share a word of rademacher noise."""


def root_key_data(seed: int | jax.Array) -> KeyData:
    """Raw key data, uint32[2], of an integer seed or of a threefry2x32 key.

    Raises:
        ValueError: for a key of another implementation; ``rbg`` keys, for one, give other draws under vmap than in a loop.
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(seed)) != KEY_IMPL:
            raise ValueError(
                f"key implementation {jax.random.key_impl(seed)}: noise is defined for {KEY_IMPL} keys only; "
                f"use jax.random.key(seed, impl='{KEY_IMPL}')"
            )
        return jax.random.key_data(seed)
    return jax.random.key_data(jax.random.key(seed, impl=KEY_IMPL))


def fold_in(key_data: KeyData, data: int | jax.Array) -> KeyData:
    """``jax.random.fold_in`` on raw key data: uint32[2] -> uint32[2]."""
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=KEY_IMPL), data))


def leaf_keys(key_data: KeyData, paths: Iterable[str]) -> dict[str, KeyData]:
    """Path -> key of the leaf, from a candidate's key. In one operation: one for each leaf is a good part of the time of a small
    model's noise."""
    paths = tuple(paths)
    if not paths:
        return {}
    keys = jax.vmap(fold_in, (None, 0))(key_data, jnp.array([path_hash(path) for path in paths], jnp.uint32))
    return {path: keys[number] for number, path in enumerate(paths)}


def threefry2x32(key_data: KeyData, block: Block) -> tuple[UInt32[Array, " *s"], UInt32[Array, " *s"]]:
    """Threefry-2x32 on the flat indices of a block: two uint32 arrays of its shape."""
    hi, lo = counters(block, start=key_data[1])
    return threefry_rounds((key_data[0], key_data[1]), jnp.asarray(hi, jnp.uint32) + key_data[0], lo)


def threefry_rounds(key: tuple[jax.Array, jax.Array], x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The 20 rounds of Threefry-2x32 (Salmon et al., SC 2011), unrolled, on counters (high, low) to which the key has been added; uint32.
    A kernel may call this on its registers."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(WORD_BITS - rotation))
            x1 = x0 ^ x1
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + (keys[(group + 2) % 3] + np.uint32(group + 1))
    return x0, x1


def counters(block: Block, start: jax.Array | int = 0) -> tuple[jax.Array | int, jax.Array]:
    """High and low words of the flat indices, in C order in the whole leaf, of a block's elements: each uint32 of the block's shape.

    The high word is the plain integer 0 where no index of the leaf reaches 2**32. Stacked layers of a 70B model do (80 x 8192 x 28672).
    ``start`` is added to the low word, without carry. Threefry adds the key there; added first, it makes the sum depend on the candidate.
    Counters alone are loop invariants, which XLA hoists out of the loop over candidates and keeps, as big as the weights.
    """
    shape, sizes = block.global_shape, block.shape
    wide = math.prod(shape) > 2**WORD_BITS
    start = jnp.asarray(start, jnp.uint32)
    hi: jax.Array | int = jnp.zeros(sizes, jnp.uint32) if wide else 0
    lo = jnp.zeros(sizes, jnp.uint32) if wide else jnp.full(sizes, start)
    for d, (n, part) in enumerate(zip(sizes, block.dims, strict=True)):
        stride = math.prod(shape[d + 1 :])
        if part is None or isinstance(part, Slice):
            index = jnp.arange(n, dtype=jnp.uint32)
            if part is not None:
                index = index + jnp.asarray(part.start).astype(jnp.uint32)
        else:
            index = part.astype(jnp.uint32)
        if wide:
            add_hi, add_lo = (jax.lax.broadcast_in_dim(word, sizes, (d,)) for word in _multiply_wide(index, stride))
            lo = lo + add_lo
            hi = hi + add_hi + (lo < add_lo).astype(jnp.uint32)
        else:
            lo = lo + jax.lax.broadcast_in_dim(index * np.uint32(stride), sizes, (d,))
    return hi, lo + start if wide else lo


def _multiply_wide(x: jax.Array, factor: int) -> tuple[jax.Array, jax.Array]:
    """``x * factor`` modulo 2**64 as (high, low) uint32 words; ``factor`` is a Python integer below 2**64."""
    f_lo, f_hi = jnp.uint32(factor & 0xFFFFFFFF), jnp.uint32(factor >> WORD_BITS)
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    x0, x1, f0, f1 = x & mask, x >> half, f_lo & mask, f_lo >> half
    low = x0 * f0
    mid = x1 * f0 + (low >> half)
    mid2 = x0 * f1 + (mid & mask)
    high = x1 * f1 + (mid >> half) + (mid2 >> half)
    return high + x * f_hi, x * f_lo


def bits(key_data: KeyData, block: Block) -> UInt32[Array, "*block"]:
    """``jax.random.bits(key, shape)``, or a block of it: uint32, bit for bit."""
    x0, x1 = threefry2x32(key_data, block)
    return x0 ^ x1


@jax.jit  # compiled even when called eagerly: one operation at a time rounds differently from a fused loop
def gaussian(key_data: KeyData, block: Block) -> Float32[Array, "*block"]:
    """``jax.random.normal(key, shape, float32)``, or a block of it, bit for bit."""
    return normal_of_words(bits(key_data, block), erf_inv)


def normal_of_words(words: jax.Array, inverse: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The steps of ``jax.random.normal`` from its words on: 23 random bits -> [1, 2) -> (-1, 1) -> ``inverse`` error function. float32."""
    unit = jax.lax.bitcast_convert_type((words >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32) - np.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    # The factor is 2 and stays: without it XLA joins the two additions, and rounds otherwise.
    return np.float32(np.sqrt(2)) * inverse(unit * (np.float32(1) - low) + low)


@jax.jit
def rademacher_sign_bits(key_data: KeyData, block: Block) -> UInt32[Array, "*block"]:
    """Rademacher noise, or a block of it, as one sign bit an element in bit 31: 0 where it is +1, 0x80000000 where it is -1. uint32."""
    shape = block.global_shape
    _, rows, columns = matrix_view(shape)
    word_shape = (*shape[:-2], -(-rows // WORD_BITS), columns)
    *leading, column = block.index or (None,)
    row = leading.pop() if leading else None
    bit = jnp.arange(min(rows, WORD_BITS), dtype=jnp.uint32)
    if row is None:
        words = _words(key_data, Block(word_shape, None if block.index is None else (*leading, None, column)))
        return _expand(words, bit)[:, :rows].reshape(block.shape)
    if isinstance(row, Slice):
        # A slice may begin inside a word: one more group is made, and the rows before the slice are dropped again.
        first = jnp.asarray(row.start).astype(jnp.uint32)
        groups = Slice(first // WORD_BITS, -(-row.size // WORD_BITS) + 1)
        signs = _expand(_words(key_data, Block(word_shape, (*leading, groups, column))), jnp.arange(WORD_BITS, dtype=jnp.uint32))
        return jax.lax.dynamic_slice_in_dim(signs, (first % WORD_BITS).astype(jnp.int32), row.size, axis=1).reshape(block.shape)
    listed = row.astype(jnp.uint32)
    words = _words(key_data, Block(word_shape, (*leading, listed // WORD_BITS, column)))
    return _sign_bit(words, (listed % WORD_BITS)[:, None]).reshape(block.shape)


def _expand(words: jax.Array, bit: jax.Array) -> jax.Array:
    """Words (..., G, C) -> sign bits (B, G * len(bit), C): the given bits of each word, one row each."""
    *leading, groups, columns = words.shape
    blocks = math.prod(leading)
    signs = _sign_bit(words.reshape(blocks, groups, 1, columns), bit[:, None])
    return signs.reshape(blocks, groups * bit.shape[0], columns)


def _sign_bit(words: jax.Array, bit: jax.Array) -> jax.Array:
    """Bit number ``bit`` of each word, inverted and moved to bit 31."""
    shift = jnp.uint32(WORD_BITS - 1) - bit
    return (~words << jax.lax.expand_dims(shift, range(words.ndim - bit.ndim))) & jnp.uint32(0x80000000)


def _words(key_data: jax.Array, block: Block) -> jax.Array:
    """The words of a rademacher leaf, or a block of them."""
    # jax's own primitive and not the rounds above: its rolled loop is a boundary that XLA does not fuse across. Fused, the 20 rounds would
    # be repeated for each of the 32 rows that share a word; unfused they cost one 32nd of a pass.
    hi, lo = counters(block)
    lo = _compat.varying_like(lo, key_data)
    key_data = _compat.varying_like(key_data, lo)
    hi = _compat.varying_like(jnp.broadcast_to(jnp.asarray(hi, jnp.uint32), lo.shape), lo)
    # As a matrix: XLA:CPU takes three to five times as long to compile the loop over an array of more dims.
    matrix = (math.prod(lo.shape[:-1]), lo.shape[-1]) if lo.ndim > 2 else lo.shape
    x0, x1 = _compat.threefry2x32(key_data, hi.reshape(matrix), lo.reshape(matrix))
    return (x0 ^ x1).reshape(lo.shape)


def rademacher(key_data: KeyData, block: Block) -> Float32[Array, "*block"]:
    """Signs +1/-1 as float32, or a block of them, one bit of threefry output each."""
    one = jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(rademacher_sign_bits(key_data, block) | one, jnp.float32)


def matrix_view(shape: Sequence[int]) -> tuple[int, int, int]:
    """(B, R, C) of a leaf: leading dims, second-to-last or 1, last or 1."""
    columns = shape[-1] if len(shape) >= 1 else 1
    rows = shape[-2] if len(shape) >= 2 else 1
    return math.prod(shape[:-2]), rows, columns
