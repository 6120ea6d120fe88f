"""A small vision transformer (arXiv 2010.11929) in Flax NNX, pre-norm, scanned over its layers.

Axis letters: B images, S pixels of a side, C channels, P patches, D model, H heads, L layers. Parameters travel as a plain nested dict
(``ViTConfig.build`` makes the module), those of the layers stacked along a leading L axis under ``layers/``. Float32. The matrices of the
layers have a place for LoRA (``adapters.VIT_PROJECTIONS``), those that end attention and MLP one for bottlenecks (``VIT_BLOCK_ENDS``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturbjax.errors import InputError, positive_integer
from perturbjax.models.adapter_layers import adapter_shapes
from perturbjax.models.linear import Linear, bottleneck_after, set_adapters
from perturbjax.tree import leaf_paths, nest

MLP = 4
"""Width of the hidden layer of an MLP, in D."""


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a vision transformer.

    Attributes:
        image: pixels of a side of the images that positions are learned for; others may be smaller.
        patch: pixels of a side of a patch; it divides the sides of images.
        hidden: D.
        layers: L.
        heads: H, which divides D.
        channels: C.

    Raises:
        InputError: a size below 1, or one that does not divide what it should.
    """

    image: int
    patch: int
    hidden: int
    layers: int
    heads: int
    channels: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            positive_integer(name, value)
        for part, whole in (("patch", "image"), ("heads", "hidden")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f"`{part}` {getattr(self, part)}: a divisor of `{whole}` {getattr(self, whole)} is required")

    @property
    def grid(self) -> int:
        """Patches of a side of the largest images."""
        return self.image // self.patch

    def init(self, seed: int) -> dict[str, Any]:
        """Random parameters as nested dicts of numpy arrays."""
        made = jax.jit(lambda: nnx.to_pure_dict(nnx.state(ViT(self, nnx.Rngs(seed)))))()
        return jax.tree.map(np.asarray, made)

    def build(self, params: Any) -> ViT:
        """The module over its parameters (arrays or tracers), with those of adapters (``Adapter.attach``). Nothing is copied.

        Raises:
            InputError: an adapter where there is no place for one.
            ValueError: a superfluous parameter, or one of an adapter of another shape.
        """
        graphdef, state = nnx.split(nnx.eval_shape(lambda: ViT(self, nnx.Rngs(0))))
        leaves, plain = leaf_paths(params), leaf_paths(nnx.to_pure_dict(state))
        shapes = {path: jnp.shape(leaf) for path, leaf in leaves.items()}
        beside = adapter_shapes({path: leaf.shape for path, leaf in plain.items()}, shapes)
        for path, shape in beside.items():
            if shapes[path] != shape:
                raise ValueError(f"parameter {path}: shape {shapes[path]} where the model needs {shape}")
        nnx.replace_by_pure_dict(state, nest({path: leaf for path, leaf in leaves.items() if path not in beside}) if beside else params)
        vit = nnx.merge(graphdef, state)
        set_adapters(vit, {path: leaves[path] for path in beside})
        return vit


class Block(nnx.Module):
    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        d = config.hidden
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nnx.LayerNorm(d, rngs=rngs), nnx.LayerNorm(d, rngs=rngs)
        self.qkv, self.o = Linear(d, 3 * d, rngs=rngs), Linear(d, d, rngs=rngs)
        self.up, self.down = Linear(d, MLP * d, rngs=rngs), Linear(MLP * d, d, rngs=rngs)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x, (b, t, d) = x_BxTxD, x_BxTxD.shape
        with jax.named_scope("attention"):
            qkv = self.qkv(self.attention_norm(x)).reshape(b, t, 3, self.heads, d // self.heads)
            mixed = jax.nn.dot_product_attention(*(qkv[:, :, part] for part in range(3)))
            x = x + bottleneck_after(self.o, self.o(mixed.reshape(b, t, d)))
        with jax.named_scope("mlp"):
            return x + bottleneck_after(self.down, self.down(jax.nn.gelu(self.up(self.mlp_norm(x)))))


class ViT(nnx.Module):
    """Images to the states of a class token and of their patches."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        self.config, d = config, config.hidden
        self.embed = nnx.Linear(config.patch**2 * config.channels, d, rngs=rngs)

        def token(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.positions = token(config.grid, config.grid, d)
        self.class_token, self.mask_token = token(d), token(d)
        self.layers = nnx.vmap(lambda rngs: Block(config, rngs))(rngs.split(config.layers))
        self.norm = nnx.LayerNorm(d, rngs=rngs)

    def __call__(
        self, images_BxSxSxC: jax.Array, mask_BxP: jax.Array | None = None, differentiated: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the layers.

        Args:
            images_BxSxSxC: images of any side that ``patch`` divides; positions of a grid of another size are interpolated.
            mask_BxP: from 0 to 1, how much of the embedding of each patch is replaced by the mask token (arXiv 2111.07832, where masks are
                0 or 1); differentiable. Nothing is replaced when left out.
            differentiated: the layers, counted from the last, whose parameters derivatives are taken of; the parameters of the others are
                constants. Derivatives by images and mask go through all layers. All when left out.

        Returns:
            After the last norm, the class token (B, D) and the patches, row by row, (B, P, D).
        """
        config, (b, side, _, channels) = self.config, images_BxSxSxC.shape
        grid, d = side // config.patch, config.hidden
        with jax.named_scope("embed"):
            blocks = images_BxSxSxC.reshape(b, grid, config.patch, grid, config.patch, channels)
            x = self.embed(blocks.swapaxes(2, 3).reshape(b, grid * grid, -1))
            if mask_BxP is not None:
                x = x + mask_BxP[..., None] * (self.mask_token[...][None, None] - x)
            positions = self.positions[...]
            if grid != config.grid:
                positions = jax.image.resize(positions, (grid, grid, d), "linear")
            x = x + positions.reshape(1, grid * grid, d)
            x = jnp.concatenate([jnp.broadcast_to(self.class_token[...], (b, 1, d)), x], axis=1)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x: jax.Array, state: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, state)(x), None

        constant = 0 if differentiated is None else config.layers - differentiated
        if constant:
            early = jax.tree.map(lambda leaf: leaf[:constant], stacked)
            x, _ = jax.lax.scan(layer, x, jax.lax.stop_gradient(early))
        x, _ = jax.lax.scan(layer, x, jax.tree.map(lambda leaf: leaf[constant:], stacked))
        x = self.norm(x)
        return x[:, 0], x[:, 1:]
