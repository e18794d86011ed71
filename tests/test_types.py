"""What passes between rooms."""

from diffusion_jax.types import FieldSpec, ImageSpec


def test_specs_can_be_static_arguments_and_cache_keys():
  fields = {"text": FieldSpec((3, 2), "float32")}
  one, same = (ImageSpec(8, 8, 1, 17, 10, dict(fields)) for _ in range(2))
  assert len({one, same, ImageSpec(8, 8, 1, 17, 10)}) == 2
