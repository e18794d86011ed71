"""What the environment says of a job, and what is refused."""

import pytest

from diffusion_jax.parallel import Distributed, World, choose, detect
from diffusion_jax.parallel import world as worlds
from diffusion_jax.types import UserError

SLURM = {
  "SLURM_JOB_ID": "4100", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2",
  "SLURM_STEP_NODELIST": "gpu[07,09]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip
MEGASCALE = {
  "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2",
  "MEGASCALE_COORDINATOR_ADDRESS": "t0:8080",
}  # fmt: skip
SLICE = {
  "SLICE_NUM_PROCESSES": "4", "SLICE_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "a:1"
}  # fmt: skip
JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
  monkeypatch.setattr(worlds, "_is_tpu_host", lambda: False)


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node1", "node1"),
    ("node1,node7", "node1"),
    ("gpu[07-09,12],login", "gpu07"),
    ("gpu[003,007-015]", "gpu003"),
    ("rack[1-4]-a,b", "rack1-a"),
  ],
)
def test_the_first_of_slurms_hosts(nodes, first):
  assert worlds.first_host(nodes) == first


@pytest.mark.parametrize(
  ("env", "expected"),
  [
    ({}, None),
    (JAX, World("JAX_* variables", 4, 3, "a:1")),
    (SLURM, World("SLURM job 4100", 2, 1, "gpu07:61444")),
    # One task a device: each is told its own, or it would take all of the node's.
    (
      SLURM | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"},
      World("SLURM job 4100", 16, 11, "gpu07:61444", (3,)),
    ),
    (SLURM | {"JAX_COORDINATOR_ADDRESS": "b:7"}, World("SLURM job 4100", 2, 1, "b:7")),
    (SLURM | {"JAX_COORDINATOR_PORT": "9"}, World("SLURM job 4100", 2, 1, "gpu07:9")),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    # A shell inside an allocation is not a step of it.
    ({k: v for k, v in SLURM.items() if "STEP" not in k} | {"SLURM_NTASKS": "2"}, None),
    (
      {"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "2"},
      World("GKE", 4, 2, "t0:8476"),
    ),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    # Of several slices, each lists its own hosts; processes are numbered slice by slice.
    (
      MEGASCALE | {"TPU_WORKER_HOSTNAMES": "t4,t5", "TPU_WORKER_ID": "1"},
      World("GKE", 6, 5, "t0:8476"),
    ),
    (
      MEGASCALE | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
      World("GKE", 3, 2, "t0:8476"),
    ),
    (MEGASCALE | SLICE, World("SLICE_* variables", 12, 9, "a:1")),
    (
      MEGASCALE | SLICE | {"MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"},
      World("SLICE_* variables", 4, 1, "a:1"),
    ),
    (SLICE, World("SLICE_* variables", 4, 1, "a:1")),
    (MEGASCALE | JAX, World("JAX_* variables", 4, 3, "a:1")),
  ],
)
def test_what_the_environment_says(env, expected):
  assert detect(env) == expected


def test_a_cloud_tpu_is_left_to_jax(monkeypatch):
  monkeypatch.setattr(worlds, "_is_tpu_host", lambda: True)
  assert detect({}) == World("Cloud TPU")
  assert detect(JAX) == World("JAX_* variables", 4, 3, "a:1")


@pytest.mark.parametrize(
  ("env", "words"),
  [
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is not set"),
    ({**JAX, "JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS is not set"),
    ({**JAX, "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two must be a number"),
    ({"SLICE_NUM_PROCESSES": "2"}, r"SLICE_PROCESS_ID is not set; .* unset all SLICE_\*"),
    (SLICE | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_SLICE_ID is not set"),
  ],
)
def test_half_a_description_is_refused(env, words):
  with pytest.raises(UserError, match=words):
    detect(env)


@pytest.mark.parametrize(
  ("config", "env", "words"),
  [
    (Distributed("on"), {}, "mode=on`, but nothing here describes a job"),
    (Distributed(num_processes=2), {}, "num_processes=2`, but the environment has 1"),
    (Distributed(num_processes=3), JAX, r"num_processes=3`, but JAX_\* .* has 4; .*=4"),
    (Distributed("off", 4), JAX, "num_processes=4`, but the environment has 1"),
    (Distributed(), JAX | {"JAX_PROCESS_ID": "4"}, "process 4 is not one of 4; .* 0 and 3"),
  ],
)
def test_a_job_that_the_config_does_not_mean_is_refused(config, env, words):
  with pytest.raises(UserError, match=words):
    choose(config, env)


def test_what_is_joined():
  assert choose(Distributed(), {}) is None
  assert choose(Distributed("off"), JAX) is None
  assert choose(Distributed(num_processes=4), JAX) == detect(JAX)
  one = {**JAX, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
  assert choose(Distributed(), one) is None
  assert choose(Distributed("on"), one) == detect(one)


@pytest.mark.parametrize(
  "wrong", [{"num_processes": 0}, {"heartbeat_sec": 0}, {"watchdog_sec": 0.5}]
)
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match="must be at least 1"):
    Distributed(**wrong)
