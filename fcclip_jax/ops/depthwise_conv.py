"""Depthwise convolution, stride 1, zero padding, by the formulation that the platform runs fastest."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fcclip_jax.ops.platform import by_platform


def depthwise_conv_shifts(x: Float[Array, "B H W C"], kernel: Float[Array, "k k C"]) -> Float[Array, "B H W C"]:
    """The sum of k*k shifted products, which XLA fuses into one loop.

    On CPU 16-18 times faster than a grouped `lax.conv_general_dilated` at 7x7 (23 against 1.4 GFLOP/s).
    """
    size, height, width = kernel.shape[0], x.shape[1], x.shape[2]
    reach = size // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    # 49 sums in bfloat16 would lose half of its few digits.
    total = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    for dy in range(size):
        for dx in range(size):
            product = padded[:, dy : dy + height, dx : dx + width].astype(total.dtype) * kernel[dy, dx]
            total = total + product
    return total.astype(x.dtype)


def depthwise_conv_grouped(x: Float[Array, "B H W C"], kernel: Float[Array, "k k C"]) -> Float[Array, "B H W C"]:
    """One grouped convolution: what GPU and TPU libraries have kernels for."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def depthwise_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "k k C"]) -> Float[Array, "B H W C"]:
    """Cross-correlates each channel with its own odd `k x k` kernel; the output has the input's size."""
    return by_platform(x, kernel, cpu=depthwise_conv_shifts, other=depthwise_conv_grouped)
