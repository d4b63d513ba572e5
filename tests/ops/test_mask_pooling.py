import jax
import jax.numpy as jnp
import numpy as np

from fcclip_jax.ops.mask_pooling import mask_pooling


def test_by_hand():
    features = jnp.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]]).reshape(1, 2, 2, 2)
    masks = jnp.array([[[[1.0, -1.0], [0.5, -2.0]], [[-1.0, 0.0], [-1.0, -1.0]]]])
    pooled, valid = mask_pooling(features, masks)
    np.testing.assert_allclose(pooled[0, 0], [2.5, 25.0], rtol=1e-6)
    np.testing.assert_array_equal(pooled[0, 1], [0.0, 0.0])  # 0 is not positive: the mask is empty
    np.testing.assert_array_equal(valid, [[True, False]])


def test_a_full_mask_is_the_mean():
    features = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    pooled, _ = mask_pooling(features, jnp.ones((2, 1, 6, 5)))
    np.testing.assert_allclose(pooled[:, 0], features.mean(axis=(1, 2)), atol=1e-6)  # order of sums


def test_gradient_reaches_features_and_not_masks():
    features = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    masks = jax.random.normal(jax.random.key(1), (1, 2, 3, 3))
    to_features, to_masks = jax.grad(lambda f, m: mask_pooling(f, m)[0].sum(), (0, 1))(features, masks)
    inside = np.asarray(masks[0] > 0)
    expected = (inside / inside.sum(axis=(1, 2), keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(to_features[0, :, :, 0], expected, atol=1e-6)  # one float32 division
    assert not to_masks.any()
