"""The time of an evaluation is that of the clock on the wall, with its parts."""

from diffusion_jax.evaluation.timing import clock, describe_time


def test_the_parts_and_the_rest_add_up_to_the_wall_time():
  seconds = {"features and references": 1500.0, "samples": 790.0, "spectrum": 0.4}
  assert describe_time(seconds, 2331.0) == (
    "38m51s (features and references 25m00s, samples 13m10s, other 41s)"
  )
  assert describe_time({}, 0.4) == "0s"


def test_a_part_is_recorded_and_shown():
  seconds: dict[str, float] = {}
  with clock(seconds, "samples"):
    pass
  assert seconds["samples"] >= 0.0
