"""diffusion-jax doctor: each fault with what to type, in machines that a test can make."""

import json
import os
import subprocess
import sys

import pytest

from diffusion_jax.runs import device_check, doctor, machine


def program(folder, name, text, code=0):
  """A program on a PATH of its own that prints a text."""
  (folder / "bin").mkdir(exist_ok=True)
  path = folder / "bin" / name
  path.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
  path.chmod(0o755)
  return {"PATH": str(folder / "bin")}


def remedies(findings):
  return {finding.name: finding.remedy for finding in findings if finding.state == doctor.FAULT}


NVIDIA = "NVIDIA-SMI 570.86 Driver Version: 570.86 CUDA Version: {}"


@pytest.mark.parametrize(
  ("cuda", "used", "variables", "state", "expected"),
  [
    ("12.8", "cpu", {}, "fault", "pip install -U 'diffusion_jax[cuda12]'"),
    ("13.0", "cpu", {}, "fault", "pip install -U 'diffusion_jax[cuda13]'"),
    ("11.4", "cpu", {}, "fault", "update the NVIDIA driver"),
    ("12.8", "gpu", {}, "ok", ""),
    ("12.8", "", {}, "fault", "cuda12"),
    ("12.8", "cpu", {"JAX_PLATFORMS": "cpu"}, "note", "unset JAX_PLATFORMS"),
    ("12.8", "cpu", {"CUDA_VISIBLE_DEVICES": ""}, "note", "unset CUDA_VISIBLE_DEVICES"),
    ("12.8", "cpu", {"CUDA_VISIBLE_DEVICES": "0"}, "fault", "cuda12"),
  ],
)
def test_a_gpu_that_jax_does_not_use(cuda, used, variables, state, expected, tmp_path):
  env = {**program(tmp_path, "nvidia-smi", NVIDIA.format(cuda)), **variables}
  finding = doctor.accelerator(env, used)
  assert (finding.state, expected in finding.remedy) == (state, True), finding
  assert bool(finding.remedy) == (state != "ok")


def test_a_gpu_without_nvidia_smi_and_a_machine_without_a_gpu(tmp_path):
  (tmp_path / "nvidia0").touch()
  env = {"PATH": str(tmp_path / "none")}
  assert machine.cuda_version(env, tmp_path) == ""
  (tmp_path / "nvidia0").rename(tmp_path / "nvidiactl")  # which a container has without a GPU
  assert machine.cuda_version(env, tmp_path) is None
  failing = program(tmp_path, "nvidia-smi", "NVIDIA-SMI has failed", code=9)
  assert machine.cuda_version(failing, tmp_path) is None


@pytest.mark.parametrize("name", machine.TPU_VARIABLES)
def test_a_tpu_that_jax_does_not_use(name, tmp_path):
  finding = doctor.accelerator({"PATH": "", name: "v5e"}, "cpu")
  assert finding.state == doctor.FAULT
  assert "pip install -U 'diffusion_jax[tpu]'" in finding.remedy
  assert doctor.accelerator({"PATH": "", name: "v5e"}, "tpu").state == doctor.OK
  (tmp_path / "0000").mkdir()
  (tmp_path / "0000" / "vendor").write_text("0x1ae0\n")
  assert machine.has_tpu({}, tmp_path)
  (tmp_path / "0000" / "vendor").write_text("0x8086\n")
  assert not machine.has_tpu({}, tmp_path)


@pytest.mark.parametrize(
  ("name", "hides"),
  [
    ("jax.py", True), ("numpy.py", True), ("flax/__init__.py", True), ("random.py", True),
    ("diffusion_jax/__init__.py", True), ("jax/notes.txt", False), ("train.py", False),
    ("test.py", False), ("jax.txt", False),
  ],
)  # fmt: skip
def test_a_file_of_the_user_that_hides_a_library(name, hides, tmp_path, monkeypatch):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).touch()
  monkeypatch.chdir(tmp_path)
  finding = doctor.hidden_libraries({})
  assert (finding.state == doctor.FAULT) == hides
  if hides:
    hiding = tmp_path / name.partition("/")[0]
    assert str(hiding) in finding.text
    assert finding.remedy.startswith(f"mv {hiding} {tmp_path}/my_")
  monkeypatch.chdir(tmp_path.parent)
  assert (doctor.hidden_libraries({"PYTHONPATH": str(tmp_path)}).state == doctor.FAULT) == hides


def test_the_package_itself_hides_nothing(root, monkeypatch):
  monkeypatch.chdir(root)
  assert doctor.hidden_libraries({}).state == doctor.OK


def test_folders_that_cannot_be_written_or_are_full(tmp_path, monkeypatch):
  (tmp_path / "runs").touch()
  (tmp_path / "cache").touch()
  monkeypatch.chdir(tmp_path)
  env = {"HOME": str(tmp_path), "XDG_CACHE_HOME": f"{tmp_path}/cache"}
  found = {finding.name: finding for finding in doctor.folders(env)}
  assert {name: f.state for name, f in found.items()} == {
    "runs": "fault", "cache": "note", "data sets": "ok",
  }  # fmt: skip
  assert "`workdir=FOLDER`" in found["runs"].remedy
  assert "export XDG_CACHE_HOME=FOLDER" in found["cache"].remedy
  (tmp_path / "runs").unlink()
  usage = doctor.shutil.disk_usage(tmp_path)
  for free, state in ((10**8, "fault"), (5 * 10**9, "note"), (10**12, "ok")):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
    finding = next(doctor.folders(env))
    assert (finding.state, bool(finding.remedy)) == (state, state != "ok")
  assert not (tmp_path / "runs").exists()


def test_cuda_libraries_of_the_system_before_those_of_the_plugin(tmp_path, monkeypatch):
  env = {"LD_LIBRARY_PATH": f"/usr/lib:{tmp_path}"}
  monkeypatch.setattr(machine, "accelerator_plugins", lambda: {"jax-cuda12-plugin": "0.10"})
  assert doctor.cuda_libraries(env, "cpu").state == doctor.OK
  (tmp_path / "libcudnn.so.9").touch()
  finding = doctor.cuda_libraries(env, "cpu")
  assert (finding.state, finding.remedy) == ("fault", "unset LD_LIBRARY_PATH")
  assert str(tmp_path) in finding.text
  assert doctor.cuda_libraries(env, "gpu").state == doctor.NOTE


def test_packages_that_are_missing_or_too_old(monkeypatch):
  assert remedies(doctor.software()) == {}
  real = machine.installed
  fake = lambda names: {**real(names), **dict.fromkeys(set(names) & {"optax"})}  # noqa: E731
  monkeypatch.setattr(machine, "installed", fake)
  assert remedies(doctor.software()) == {"packages": "pip install -U 'optax'"}
  old = lambda names: {**real(names), **dict.fromkeys(set(names) & {"jaxlib"}, "0.4.1")}  # noqa: E731
  monkeypatch.setattr(machine, "installed", old)
  assert "pip install -U 'jaxlib" in remedies(doctor.software())["packages"]


def test_the_trials_compare_with_what_is_right(monkeypatch):
  found = device_check.check_devices()
  assert (found["num"], found["convolution"], found["collective"]) == (8, "", "")
  assert remedies(doctor.device_findings(found)) == {}
  monkeypatch.setattr("jax.lax.conv", lambda x, w, *_: x[..., 1:-1, 1:-1] * 0 + 5)
  assert device_check.convolution_error().startswith("its error is ")
  assert (
    "compare the driver"
    in remedies(doctor.device_findings({**found, "collective": "XlaRuntimeError: NCCL"}))[
      "collective"
    ]
  )


def test_devices_that_do_not_start_or_hang(monkeypatch, tmp_path):
  file = tmp_path / "check.py"
  monkeypatch.setattr(device_check, "__file__", str(file))
  file.write_text("import sys; sys.exit('RuntimeError: Unable to initialize backend')")
  failed = doctor.try_devices({**os.environ, "JAX_PLATFORMS": "tpu"})
  assert failed["error"] == "RuntimeError: Unable to initialize backend"
  assert failed["remedy"] == "unset JAX_PLATFORMS (it is tpu)"
  file.write_text("import time; time.sleep(60)")
  hung = doctor.try_devices(dict(os.environ), limit_sec=0.2)
  assert hung["error"].startswith("no answer within")
  assert remedies(doctor.device_findings(hung)) == {"devices": doctor.HELD}


def test_json_and_lines_tell_the_same(monkeypatch, capsys):
  found = [doctor.Finding("a", "ok", "x"), doctor.Finding("b", "note", "y\nz", "type it")]
  monkeypatch.setattr(doctor, "all_findings", lambda env: found)
  assert doctor.examine([])
  assert capsys.readouterr().out.splitlines() == [
    "ok    a            x", "note  b            y\\nz", "                   -> type it",
    "nothing must be changed",
  ]  # fmt: skip
  found.append(doctor.Finding("c", "fault", "z", "type this"))
  assert not doctor.examine(["--json"])
  said = json.loads(capsys.readouterr().out)
  assert (said["ok"], said["findings"][2]) == (
    False, {"name": "c", "state": "fault", "text": "z", "remedy": "type this"},
  )  # fmt: skip


@pytest.mark.process
def test_the_command_reports_files_that_would_break_it(tmp_path, root):
  for name in ("json", "random", "jax", "tempfile"):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
  env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "diffusion_jax", "doctor", "--json"]
  ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert ran.returncode == 2, ran.stderr
  found = {finding["name"]: finding for finding in json.loads(ran.stdout)["findings"]}
  assert found["names"]["state"] == "fault"
  assert found["devices"]["state"] == found["convolution"]["state"] == "ok"
  wrong = subprocess.run([*command, "--jsn"], cwd=root, env=env, capture_output=True, text=True)
  assert (wrong.returncode, wrong.stdout) == (2, "")
  assert wrong.stderr == (
    "error: doctor: unrecognized arguments: --jsn; see diffusion-jax doctor --help\n"
  )


def test_an_error_without_a_text_names_the_device_that_is_missing(monkeypatch):
  ran = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nAssertionError\n")
  monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: ran)
  failed = doctor.try_devices({"JAX_PLATFORMS": "cuda"})
  assert failed["error"] == "JAX_PLATFORMS=cuda: JAX finds no such device here (AssertionError)"
