"""Shipped configs are found by name from anywhere, files by their path, and nothing else is."""

import shutil

import pytest

from diffusion_jax.core import config, shipped
from diffusion_jax.runs import experiment
from diffusion_jax.runs.workdir import default_workdir
from diffusion_jax.types import UserError

NAMES = list(shipped.configs())


def loaded(text):
  return experiment.build_experiment(config.load_file(text).to_dict()).to_dict()


def refusal(text):
  with pytest.raises(UserError) as error:
    config.load_file(text)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_every_config_of_the_checkout_is_shipped(root):
  assert sorted(path.stem for path in (root / "configs").glob("*.py")) == NAMES
  assert "ddpm_digits" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_file_wherever_one_stands(name, root, tmp_path, monkeypatch):
  by_path = loaded(str(root / "configs" / f"{name}.py"))
  monkeypatch.chdir(tmp_path)
  assert loaded(name) == by_path


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_in_one_line_what_it_is(name):
  line = shipped.first_line(shipped.configs()[name])
  assert 20 < len(line) < 100
  assert line.endswith(".")


def test_a_file_goes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch, root):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "vae_digits").mkdir()  # a folder is no config
  assert loaded("vae_digits")["generative"]["name"] == "vae"
  shutil.copy(root / "configs/vae_digits.py", tmp_path / "ddpm_digits")
  assert loaded("ddpm_digits")["generative"]["name"] == "vae"
  shutil.copy(root / "configs/vae_digits.py", tmp_path / "smoke.py")
  assert loaded("smoke")["generative"]["name"] == "diffusion"
  assert loaded("smoke.py")["generative"]["name"] == "vae"
  assert loaded("./smoke.py")["generative"]["name"] == "vae"


def test_a_config_built_on_another_is_found_through_a_link(tmp_path, root):
  link = tmp_path / "mine.py"
  link.symlink_to(root / "configs/edm_cifar_cond.py")
  assert loaded(str(link)) == loaded("edm_cifar_cond")


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (
      "ddpm_digit",
      ["no such file and no shipped config", "'ddpm_digits'?", "vae_cifar"],
    ),
    ("DDPM-digits", ["Did you mean 'ddpm_digits'?"]),
    ("ddpm_digits.py", ["no such file: ddpm_digits.py", "Did you mean 'ddpm_digits'?"]),
    ("configs/ddpm_digits.py", ["no such file: configs/ddpm_digits.py", "'ddpm_digits'?"]),
    ("/nowhere/x.py", ["no such file: /nowhere/x.py", "vae_cifar"]),
    ("./ddpm_digits", ["no such file"]),
    ("..", ["it is a folder; give a config file, FILE.py", "write `data=..`"]),
  ],
)
def test_no_config_is_one_line_with_the_nearest_names(text, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  message = refusal(text)
  assert message.startswith(f"`config={text}`: ")
  for word in words:
    assert word in message


def test_own_configs_are_named_too(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/mine.py").touch()
  assert "Configs here: configs/mine.py" in refusal("configs/min.py")


def test_an_installed_package_has_its_own_folder(tmp_path, monkeypatch):
  package = tmp_path / "site-packages/diffusion_jax"
  (package / "configs").mkdir(parents=True)
  (package.parent / "configs").mkdir()  # of some other package
  (package.parent / "configs/theirs.py").touch()
  (package / "configs/one.py").write_text('"""One.\n\nTwo."""\nraise SystemExit\n')
  monkeypatch.setattr(shipped, "PACKAGE", package)
  assert list(shipped.configs()) == ["one"]
  assert shipped.first_line(package / "configs/one.py") == "One."


def test_a_run_lies_in_the_same_folder_however_its_config_is_named(root):
  named = ["smoke", "smoke.py", "configs/smoke.py", f"{root}/configs/smoke.py"]
  assert {str(default_workdir(text)) for text in named} == {"runs/smoke"}


@pytest.mark.parametrize("name", ["photos.zip", "photos.TAR", "images.npz"])
def test_data_given_as_a_config_are_sent_to_their_argument(name, tmp_path):
  (tmp_path / name).touch()
  with pytest.raises(UserError, match=r"is no config file; to train on it write `data="):
    config.find_file(f"{tmp_path}/{name}")
