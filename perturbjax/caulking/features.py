"""A head on a frozen decoder: the hidden states that it reads are made once for a base, whatever the number of cells, steps and samples.

The head is a matrix of its own, which begins as the base's: as its head, or as the embedding that stands for one. Of single tokens only the
columns that are asked for are in it. The others have no gradient, so that AdamW without decay does not move them, and nobody reads them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from perturbjax import sharding
from perturbjax.caulking.language import TEST_ROWS, asked_hidden, by_width, cross_entropy, scores_of_logits, wrong
from perturbjax.caulking.program import Shared
from perturbjax.caulking.questions import Layout
from perturbjax.models.config import DecoderConfig, untied
from perturbjax.pretrained import Model


def head_shapes(config: DecoderConfig, columns: np.ndarray | None) -> dict[str, Any]:
    """Shapes of what a cell of the method ``head`` trains, in place of the base's whole head."""
    width = config.vocab_size if columns is None else len(columns)
    return {"caulk": {"head": {"kernel": jax.ShapeDtypeStruct((config.hidden_size, width), jnp.float32)}}}


def with_head(base: Model, kernel: np.ndarray, columns: np.ndarray) -> Model:
    """The model with a head of its own: the base's, but for these columns."""
    config, params = untied(base.config, base.params)
    whole = np.array(params["head"]["kernel"])
    whole[:, columns] = kernel.astype(whole.dtype)
    hf_config = base.hf_config | {"tie_word_embeddings": False}
    return dataclasses.replace(base, config=config, params={**params, "head": {"kernel": whole}}, hf_config=hf_config)


class HeadProblem:
    """Loss and error of a head, ``{"head": {"kernel": (D, V)}}``, on hidden states that are made already."""

    @staticmethod
    def scores(params: Any, batch: Any) -> jax.Array:
        """As ``language.scores_of_logits``, (B, C)."""
        kernel, hidden = params["head"]["kernel"], batch["hidden"]
        return scores_of_logits(jnp.einsum("bqd,dv->bqv", hidden, kernel, preferred_element_type=jnp.float32), batch)

    @staticmethod
    def loss(params: Any, batch: Any) -> jax.Array:
        """Mean cross-entropy of the softmax over the choices."""
        return cross_entropy(HeadProblem.scores(params, batch), batch["answer"])

    @staticmethod
    def error(params: Any, test: Any) -> jax.Array:
        """Fraction of wrong answers; NaN where scores are."""
        return wrong(HeadProblem.scores(params, test), test["answer"]).mean()


class HeadFeatures:
    """``GridProgram.freeze`` of the method ``head``.

    Args:
        config: of the decoder.
        layout: of ``TEST_ROWS`` questions.
        columns: token ids that the head is read at, growing; None: all.
        samples: most rows that a cell draws from.
        mesh: blocks of questions are sharded over its "data" axis.
    """

    def __init__(self, config: DecoderConfig, layout: Layout, columns: np.ndarray | None, samples: int, mesh: Mesh):
        self._config, self._layout, self._columns, self._samples, self._mesh = config, layout, columns, samples, mesh
        over, same = sharding.OVER_DATA, sharding.REPLICATED
        mapped = jax.shard_map(self._local, mesh=mesh, in_specs=(same, over), out_specs=over, check_vma=False)
        self._hidden = jax.jit(mapped, out_shardings=NamedSharding(mesh, same))

    def _local(self, params: Any, blocks: Any) -> jax.Array:
        def hidden(params: Any, batch: Any, width: int) -> jax.Array:
            return asked_hidden(self._config.build(params), batch, self._layout, width)

        return jax.lax.map(lambda batch: by_width(self._layout, hidden, params, batch), blocks)

    def __call__(self, shared: Shared) -> Shared:
        """The head alone as the base, and hidden states in place of the rows that some seed draws from and of the test rows."""
        data, test, order = jax.tree.map(np.asarray, (shared.data, shared.test, shared.order))
        rows = np.unique(order[:, : self._samples])
        both = {name: np.concatenate([data[name][rows], test[name]]) for name in data}
        count, whole = len(both["answer"]), TEST_ROWS * self._mesh.shape[sharding.DATA]
        numbers = np.minimum(np.arange(-(-count // whole) * whole), count - 1).reshape(-1, TEST_ROWS)
        blocks = sharding.put_over_data({name: array[numbers] for name, array in both.items()}, self._mesh)
        hidden = np.asarray(self._hidden(shared.base, blocks))
        read = {name: array for name, array in both.items() if name in ("labels", "answer", "asked")}
        read |= {"hidden": hidden.reshape(-1, *hidden.shape[2:])[:count]}
        if self._columns is not None:
            read["labels"] = np.searchsorted(self._columns, read["labels"]).astype(np.int32)
        early, late = ({name: array[part] for name, array in read.items()} for part in (slice(len(rows)), slice(len(rows), None)))
        order = np.searchsorted(rows, order[:, : self._samples]).astype(np.int32)
        return sharding.put_replicated(Shared(self._head(shared.base), early, late, order), self._mesh)

    def _head(self, params: Any) -> dict[str, Any]:
        if self._config.tied_head:
            embedding = params["embed"]["embedding"]
            kernel = (embedding if self._columns is None else embedding[self._columns]).T
        else:
            kernel = params["head"]["kernel"]
            kernel = kernel if self._columns is None else kernel[:, self._columns]
        return {"head": {"kernel": kernel}}
