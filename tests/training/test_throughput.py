"""Figures of the loop: means, speed, and the stop after too many skipped updates."""

import math
import time

import jax.numpy as jnp
import pytest

from diffusion_jax.training.throughput import LAG, Meter, NonFinite


def scalars(loss, in_a_row=0, skipped=0):
  values = {"loss": loss, "learning_rate": 0.1, "num_skipped": skipped}
  return {n: jnp.float32(v) for n, v in (values | {"num_skipped_in_a_row": in_a_row}).items()}


def test_means_over_the_interval_and_last_values_of_counters():
  meter = Meter(8, 3)
  for step, loss in enumerate([1.0, 2.0, 6.0], start=1):
    meter.push(step, scalars(loss, skipped=step))
  figures = meter.interval(0.0)
  assert figures["loss"] == 3.0
  assert figures["num_skipped"] == 3.0
  meter.push(4, scalars(5.0))
  assert meter.interval(0.0)["loss"] == 5.0


def test_a_skipped_step_adds_nothing_to_the_mean():
  meter = Meter(8, 3)
  meter.push(1, scalars(2.0))
  meter.push(2, scalars(math.nan, in_a_row=1, skipped=1))
  assert meter.interval(0.0)["loss"] == 2.0
  meter.push(3, scalars(math.inf, in_a_row=1, skipped=1))
  assert math.isnan(meter.interval(0.0)["loss"])


def test_the_run_ends_at_the_limit_and_names_the_steps():
  meter = Meter(8, 3)
  for step in range(1, 5):
    meter.push(step, scalars(1.0))
  for step in range(5, 7 + LAG):
    meter.push(step, scalars(math.nan, in_a_row=step - 4))
  with pytest.raises(NonFinite, match="not finite in steps 5 to 7") as caught:
    meter.push(7 + LAG, scalars(math.nan, in_a_row=3 + LAG))
  assert (caught.value.first, caught.value.last) == (5, 7)


def test_the_last_steps_of_a_run_count_too():
  meter = Meter(8, LAG)
  for number in range(1, LAG + 1):
    meter.push(number, scalars(math.nan, in_a_row=number))
  with pytest.raises(NonFinite):
    meter.drain()


def test_speed_and_data_wait_leave_pauses_out():
  meter = Meter(10, 3)
  for step in (1, 2):
    meter.push(step, scalars(1.0))
  time.sleep(0.2)
  with meter.pause():
    time.sleep(0.5)
  figures = meter.interval(wait_sec=0.1)
  seconds = 2 * figures["step_sec"]
  assert 0.2 <= seconds < 0.5
  assert figures["images_per_sec"] == pytest.approx(20 / seconds)
  assert figures["data_wait_share"] == pytest.approx(0.1 / seconds)


def test_data_wait_counts_since_the_last_interval():
  meter = Meter(10, 3)
  meter.push(1, scalars(1.0))
  meter.interval(wait_sec=50.0)
  meter.push(2, scalars(1.0))
  time.sleep(0.05)
  assert meter.interval(wait_sec=50.0)["data_wait_share"] == 0.0


def test_saving_holds_the_loop_up_and_other_pauses_do_not_count_as_saving():
  meter = Meter(10, 3)
  begun = time.perf_counter()
  meter.push(1, scalars(1.0))
  with meter.pause(saving=True):
    time.sleep(0.3)
  with meter.pause():
    time.sleep(0.1)
  share = meter.interval(0.0)["checkpoint_stall_share"]
  assert share == pytest.approx(0.3 / (time.perf_counter() - begun), rel=0.1)
  meter.push(2, scalars(1.0))
  assert meter.interval(0.0)["checkpoint_stall_share"] == 0.0


def test_goodput_is_the_share_of_all_time_in_steps_that_were_taken(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  monkeypatch.setattr("diffusion_jax.training.throughput.STARTED", 90.0)
  meter = Meter(10, 3)
  for step, skipped in enumerate([0, 1, 0, 0], start=1):
    meter.push(step, scalars(1.0, in_a_row=skipped))
  now[0] = 110.0  # of 20 s in all, 10 s of steps, 1 s of them a wait; one of the four was skipped
  assert meter.interval(wait_sec=1.0)["goodput"] == pytest.approx(0.75 * 9 / 20)
  meter.push(5, scalars(1.0))
  now[0] = 120.0
  assert meter.interval(wait_sec=1.0)["goodput"] == pytest.approx((0.75 * 9 + 10) / 30)


def test_mfu_is_what_was_computed_over_what_the_chip_can(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  meter = Meter(10, 3, model_flops=3e12, executed_flops=4e12, peak_flops=100e12)
  meter.push(1, scalars(1.0))
  meter.push(2, scalars(1.0))
  now[0] = 0.2  # 0.1 s a step: 30 TFLOP/s
  interval = meter.interval(0.0)
  assert interval["mfu"] == pytest.approx(0.3)
  assert interval["hfu"] == pytest.approx(0.4)  # with what rematerialisation computes again
  meter = Meter(10, 3, model_flops=3e12, executed_flops=4e12)
  meter.push(1, scalars(1.0))
  now[0] = 0.4
  assert not {"mfu", "hfu"} & set(meter.interval(0.0))
