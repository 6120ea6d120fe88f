"""SHA-256 of the blocks of a pytree: which process hashes which block, and what a restored tree is checked against.

A block is a whole numpy array, or what one device holds of a sharded ``jax.Array``. Each is hashed by one process that holds it, at commit;
at restore every process checks the blocks that lie within what it holds, on whatever mesh. So all blocks are checked where a restored shard
is as large as a committed one or larger.
"""

import hashlib
from typing import Any

import jax
import numpy as np

from perturbjax.cluster import gather
from perturbjax.tree import leaf_paths

Index = tuple[slice, ...]
_WHOLE = ""


def block_digests(tree: Any) -> dict[str, dict[str, str]]:
    """Leaf path -> block -> SHA-256 in hex, the same on all processes, which must call this together."""
    me, names, hashes = jax.process_index(), [], []
    for path, leaf in sorted(leaf_paths(tree).items()):
        held = _held(leaf)
        for name, owner in _owners(leaf).items():
            names.append((path, name))
            hashes.append(_sha256(held[name]) if owner == me else bytes(32))
    # A hash is zero on every process but one.
    table = gather(np.frombuffer(b"".join(hashes), np.uint8)).max(axis=0).reshape(-1, 32) if hashes else ()
    digests: dict[str, dict[str, str]] = {}
    for (path, name), digest in zip(names, table, strict=True):
        digests.setdefault(path, {})[name] = digest.tobytes().hex()
    return digests


def check_digests(tree: Any, like: Any, digests: dict[str, dict[str, str]]) -> None:
    """Checks what this process holds of a restored tree.

    Raises:
        ValueError: a leaf has another shape or dtype than in ``like``, or a block another checksum than committed.
    """
    required = leaf_paths(like)
    for path, leaf in leaf_paths(tree).items():
        found, wanted = f"{leaf.dtype}{list(leaf.shape)}", f"{required[path].dtype}{list(required[path].shape)}"
        if found != wanted:
            raise ValueError(f"{path} has shape {found}, {wanted} is required")
        parts = [(_index(name, leaf.shape), part) for name, part in _held(leaf).items()]
        for name, sha256 in digests[path].items():
            block = _index(name, leaf.shape)
            part = next((part[_within(block, index)] for index, part in parts if _contains(index, block)), None)
            if part is not None and _sha256(part).hex() != sha256:
                raise ValueError(f"the checksum of {path} does not match")


def _held(leaf: Any) -> dict[str, Any]:
    """The blocks of a leaf that this process holds, by name."""
    if isinstance(leaf, np.ndarray):
        return {_WHOLE: leaf}
    return {_name(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}


def _owners(leaf: Any) -> dict[str, int]:
    """All blocks of a leaf by name, and the process that hashes each."""
    if isinstance(leaf, np.ndarray):
        return {_WHOLE: 0}
    owners: dict[str, int] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        name = _name(index, leaf.shape)
        owners[name] = min(owners.get(name, device.process_index), device.process_index)
    return dict(sorted(owners.items()))


def _name(index: Index, shape: tuple[int, ...]) -> str:
    return ",".join("{}:{}".format(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def _index(name: str, shape: tuple[int, ...]) -> Index:
    bounds = [part.split(":") for part in name.split(",")] if name else [(0, size) for size in shape]
    return tuple(slice(int(start), int(stop)) for start, stop in bounds)


def _contains(outer: Index, inner: Index) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for o, i in zip(outer, inner, strict=True))


def _within(block: Index, index: Index) -> Index:
    return tuple(slice(b.start - i.start, b.stop - i.start) for b, i in zip(block, index, strict=True))


def _sha256(block: Any) -> bytes:
    array = np.ascontiguousarray(np.asarray(block))
    hasher = hashlib.sha256(f"{array.dtype}{list(np.shape(block))}".encode())
    hasher.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return hasher.digest()
