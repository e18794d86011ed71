"""launch/gke_jobset.yaml against the published schema of JobSet and Kubernetes, offline."""

import copy

import pytest
import yaml
from kubeflow_trainer_api.models.io_k8s_api_core_v1_persistent_volume_claim import (
  IoK8sApiCoreV1PersistentVolumeClaim as PersistentVolumeClaim,
)
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet as JobSet

from diffusion_jax.parallel.world import detect
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment


@pytest.fixture(scope="module")
def text(pytestconfig):
  return (pytestconfig.rootpath / "launch" / "gke_jobset.yaml").read_text()


@pytest.fixture
def jobset(text):
  return yaml.safe_load(text)


def fits(schema, value: dict) -> bool:
  """Whether the schema knows every field and takes its type; a field that it drops is unknown."""
  try:
    return schema.from_dict(value).to_dict() == value
  except (ValueError, TypeError, AttributeError):  # pydantic's errors are ValueErrors
    return False


def keys_of(value, path=()):
  """Paths of every key of every mapping inside."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield (*path, key)
      yield from keys_of(inner, (*path, key))
  elif isinstance(value, list):
    for index, inner in enumerate(value):
      yield from keys_of(inner, (*path, index))


def at(value, path):
  for key in path:
    value = value[key]
  return value


FREE = {"annotations", "nodeSelector", "limits", "requests"}
"""Mappings whose keys the user names."""


def test_it_fits_the_schema(jobset):
  assert fits(JobSet, jobset)


def test_a_misspelt_field_is_found_at_every_depth(jobset):
  paths = [path for path in keys_of(jobset) if len(path) < 2 or path[-2] not in FREE]
  assert len(paths) > 60
  assert max(map(len, paths)) == 14  # fieldPath of an environment variable
  for path in paths:
    changed = copy.deepcopy(jobset)
    parent = at(changed, path[:-1])
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    assert not fits(JobSet, changed), path


def test_an_added_field_is_found_at_every_depth(jobset):
  parents = {p[:-1] for p in keys_of(jobset) if p[-1] not in FREE and not FREE & set(p)}
  for path in parents:
    changed = copy.deepcopy(jobset)
    at(changed, path)["surplus"] = "x"
    assert not fits(JobSet, changed), path


@pytest.mark.parametrize("wrong", ["4", 4, 4.5, True, ["x"], {"x": "y"}], ids=repr)
def test_a_value_of_another_type_is_found_at_every_leaf(jobset, wrong):
  for path in keys_of(jobset):
    if "limits" in path or not isinstance(at(jobset, path), str | int):
      continue  # a quantity may be a number or a text
    if type(at(jobset, path)) is not type(wrong):
      changed = copy.deepcopy(jobset)
      at(changed, path[:-1])[path[-1]] = wrong
      assert not fits(JobSet, changed), path


def train_job(jobset):
  return jobset["spec"]["replicatedJobs"][0]


def container(jobset):
  return train_job(jobset)["template"]["spec"]["template"]["spec"]["containers"][0]


def environment(jobset):
  return {entry["name"]: entry for entry in container(jobset)["env"]}


def test_the_coordinator_is_the_first_pod_at_a_port_of_the_container(jobset):
  job, subdomain = train_job(jobset), jobset["spec"]["network"]["subdomain"]
  first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{subdomain}"
  (port,) = container(jobset)["ports"]
  address = environment(jobset)["JAX_COORDINATOR_ADDRESS"]["value"]
  assert address == f"{first}:{port['containerPort']}"


def test_there_is_one_process_for_each_host_of_the_slice(jobset):
  spec = train_job(jobset)["template"]["spec"]
  topology = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  rows, columns = map(int, topology.split("x"))
  hosts = rows * columns // container(jobset)["resources"]["limits"]["google.com/tpu"]
  assert spec["parallelism"] == spec["completions"] == hosts
  assert environment(jobset)["SLICE_NUM_PROCESSES"]["value"] == str(hosts)
  assert train_job(jobset)["replicas"] == 1


def world_of(jobset, pod: int, slice_index: int = 0):
  """The job as a pod of a slice finds it; JobSet and Kubernetes fill in the annotations."""
  annotations = {
    "batch.kubernetes.io/job-completion-index": pod,
    "jobset.sigs.k8s.io/replicatedjob-replicas": train_job(jobset)["replicas"],
    "jobset.sigs.k8s.io/job-index": slice_index,
  }
  fields = {f"metadata.annotations['{name}']": str(value) for name, value in annotations.items()}
  return detect(
    {
      name: entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
      for name, entry in environment(jobset).items()
    }
  )


def test_the_pods_are_the_processes_of_one_job(jobset):
  address = environment(jobset)["JAX_COORDINATOR_ADDRESS"]["value"]
  found = [world_of(jobset, pod) for pod in range(4)]
  assert [(w.num_processes, w.process_id, w.coordinator) for w in found] == [
    (4, pod, address) for pod in range(4)
  ]


def test_with_more_replicas_the_slices_are_one_job(jobset):
  train_job(jobset)["replicas"] = 3
  found = [world_of(jobset, pod, index) for index in range(3) for pod in range(4)]
  assert [w.process_id for w in found] == list(range(12))
  assert {w.num_processes for w in found} == {12}
  joined = environment(jobset)["MEGASCALE_COORDINATOR_ADDRESS"]["value"]
  assert found[0].coordinator.partition(":")[0] == joined
  assert "--config.mesh.dcn_data=-1" in container(jobset)["args"]


def test_the_exit_code_for_the_user_and_no_other_ends_it(jobset):
  spec = train_job(jobset)["template"]["spec"]
  (on_pod,) = spec["podFailurePolicy"]["rules"]
  assert on_pod["action"] == "FailJob"
  assert on_pod["onExitCodes"] == {
    "containerName": container(jobset)["name"], "operator": "In",
    "values": [command_line.USER_ERROR],
  }  # fmt: skip
  (on_job,) = jobset["spec"]["failurePolicy"]["rules"]
  assert (on_job["action"], on_job["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  assert spec["backoffLimit"] == 0
  assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a podFailurePolicy asks for it
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_the_runs_folder_is_on_the_volume(jobset):
  pod = train_job(jobset)["template"]["spec"]["template"]["spec"]
  (volume,), (mount,) = pod["volumes"], container(jobset)["volumeMounts"]
  assert mount["name"] == volume["name"]
  workdir = next(a for a in container(jobset)["args"] if a.startswith("--workdir="))
  assert workdir.startswith(f"--workdir={mount['mountPath']}/")


def test_the_volume_of_the_comment_fits_the_schema_and_is_the_one_that_is_mounted(jobset, text):
  comment = text.partition("#   --- volume\n")[2].partition("#   --- end")[0]
  volume = yaml.safe_load("\n".join(line.removeprefix("#   ") for line in comment.splitlines()))
  assert fits(PersistentVolumeClaim, volume)
  assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
  pod = train_job(jobset)["template"]["spec"]["template"]["spec"]
  claimed = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
  assert claimed == volume["metadata"]["name"]


def test_the_command_is_one_that_the_program_takes(jobset, root, monkeypatch):
  from diffusion_jax import train

  monkeypatch.chdir(root)
  assert container(jobset)["command"] == ["python", "-m", "diffusion_jax.train"]
  args, overrides = train.parser().parse(container(jobset)["args"])
  load_experiment(args.config, overrides)
