"""The text tower of CLIP (arXiv 2103.00020): a causal pre-norm transformer, read at the end-of-text token."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fcclip_jax.models.layers import MultiHeadAttention, gelu, layer_norm, quick_gelu


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the tower; the vocabulary is CLIP's byte-pair table with its two special tokens. `activation`: the exact
    GELU, or that of OpenAI's weights, which the weights' shapes do not show."""

    width: int
    heads: int
    layers: int
    context_length: int = 77
    vocab_size: int = 49408
    activation: Literal["gelu", "quick_gelu"] = "gelu"


class Block(nnx.Module):
    """LayerNorm and causal self-attention, LayerNorm and a four-fold MLP, both residual."""

    def __init__(self, config: TextConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        width = config.width
        self.activation = {"gelu": gelu, "quick_gelu": quick_gelu}[config.activation]
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        later = jnp.triu(jnp.ones((x.shape[1], x.shape[1]), bool), k=1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, blocked=later)
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class ClipText(nnx.Module):
    """Token ids to text embeddings."""

    def __init__(self, config: TextConfig, embed_dim: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        normal = nnx.initializers.normal
        self.dtype = dtype
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, config.width)))
        self.positional_embedding = nnx.Param(normal(0.01)(rngs.params(), (config.context_length, config.width)))
        self.blocks = nnx.List(Block(config, dtype=dtype, rngs=rngs) for _ in range(config.layers))
        self.norm_final = layer_norm(config.width, dtype=dtype, rngs=rngs)
        self.text_projection = nnx.Param(normal(config.width**-0.5)(rngs.params(), (config.width, embed_dim)))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """`tokens` padded with 0 after the end-of-text token, T at most the context length.

        Attention is causal, so what follows the end-of-text token never reaches it: a batch may be cut at its
        longest prompt without changing the result. The embeddings are not normalised.
        """
        x = self.token_embedding[...][tokens] + self.positional_embedding[...][: tokens.shape[1]]
        x = x.astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        end = tokens.argmax(axis=-1)  # end-of-text has the highest id
        x = self.norm_final(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])
        return x @ self.text_projection[...].astype(self.dtype)
