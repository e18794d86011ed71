"""EDM's augmentation against its published steps, with PyTorch's own padding, filters and grid."""

import jax
import numpy as np
import pytest

from diffusion_jax.generative.augmentation import SYM6, warp

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")

REACH = len(SYM6) // 4


def translation(x, y):
  return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def scaling(x, y):
  return np.diag([x, y, 1.0])


def filtered(images, taps, axis, padding, stride=1):
  """Each channel by itself, along the rows (2) or the columns (3)."""
  channels, along = images.shape[1], 3 if axis == 2 else 2
  weight = taps.reshape(1, 1, 1, -1).transpose(3, axis).repeat(channels, 1, 1, 1)
  step, pad = ([v if d == axis else o for d in (2, 3)] for v, o in ((stride, 1), (padding, 0)))
  assert weight.shape[along] == 1
  return functional.conv2d(images, weight, groups=channels, stride=step, padding=pad)


def doubled(images, taps, axis):
  shape = list(images.shape)
  shape[axis] = 2 * shape[axis] - 1
  longer = torch.zeros(shape, dtype=images.dtype)
  longer[(slice(None),) * axis + (slice(None, None, 2),)] = images
  return filtered(longer, taps.flip(0), axis, (len(taps) + 1) // 2)


def published(x, matrix, shift):
  """Padded by whole mirror images, as in a large batch."""
  height, width, channels = x.shape
  taps = torch.tensor(SYM6, dtype=torch.float64)
  images = torch.from_numpy(x.transpose(2, 0, 1).astype(float))[None]
  images = functional.pad(images, [width - 1] * 2 + [height - 1] * 2, mode="reflect")
  images = doubled(doubled(images, taps, 3), taps, 2)
  inverse = np.eye(3)
  inverse[:2, :2] = np.linalg.inv(matrix)
  inverse = inverse @ translation(*-shift)
  inverse = scaling(2, 2) @ inverse @ scaling(0.5, 0.5)
  inverse = translation(-0.5, -0.5) @ inverse @ translation(0.5, 0.5)
  size = [1, channels, 2 * (height + 2 * REACH), 2 * (width + 2 * REACH)]
  inverse = scaling(2 / images.shape[3], 2 / images.shape[2]) @ inverse
  inverse = inverse @ scaling(size[3] / 2, size[2] / 2)
  grid = functional.affine_grid(torch.from_numpy(inverse[:2])[None], size, align_corners=False)
  images = functional.grid_sample(images, grid, align_corners=False)  # linear, zeros outside
  for axis in (3, 2):
    images = filtered(images, taps, axis, (len(taps) - 1) // 2, stride=2)
  return images[0, :, REACH:-REACH, REACH:-REACH].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 26, 2)])
def test_a_warp_is_that_of_the_published_steps(shape, seed):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(shape).astype(np.float32)
  matrix = (np.eye(2) + 0.3 * rng.standard_normal((2, 2))).astype(np.float32)
  shift = (4 * rng.standard_normal(2)).astype(np.float32)
  found = jax.jit(warp)(x, matrix, shift)
  np.testing.assert_allclose(found, published(x, matrix.astype(float), shift), atol=2e-4)
