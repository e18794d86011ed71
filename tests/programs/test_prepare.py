"""The program that prepares data sets: what it takes and refuses."""

from diffusion_jax import prepare


def test_prepare_names_what_it_does_not_know(call, tmp_path, monkeypatch):
  code, _, err = call(prepare.main, "no_such_set", f"--data_dir={tmp_path}")
  assert code == 2
  assert "no_such_set: tensorflow-datasets has no such set" in err
  monkeypatch.setattr(prepare, "find_spec", lambda name: None)
  code, _, err = call(prepare.main, "imagenet_v2", f"--data_dir={tmp_path}")
  assert code == 2
  assert "imagenet_v2 needs TensorFlow: pip install 'diffusion_jax[tfds-prepare]'" in err


def test_prepare_takes_no_config(call):
  code, _, err = call(prepare.main, "mnist", "--config.data.data_dir=x")
  assert code == 2
  assert "--config.data.data_dir=x: prepare takes no config" in err


def test_prepare_makes_a_standard_set(call, tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(
    prepare.standard, "prepare_standard", lambda *args: made.append(args) or "the folder"
  )
  code, out, _ = call(prepare.main, "mnist", f"--data_dir={tmp_path}")
  assert (code, out) == (0, "prepared the folder\n")
  assert made == [("mnist", tmp_path, None)]
