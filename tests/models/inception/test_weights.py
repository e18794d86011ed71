"""The weights of the FID Inception network: prepared, found again, refused; no network is used."""

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from inception_cases import random_torch_state
from torch_files import as_stream, as_zip, contiguous

from diffusion_jax import prepare
from diffusion_jax.core import files
from diffusion_jax.data import standard
from diffusion_jax.models.inception import weights as inception_weights
from diffusion_jax.models.inception.torch_port import from_torch
from diffusion_jax.types import UserError


@pytest.fixture(scope="module")
def state():
  return random_torch_state(1)


@pytest.fixture(scope="module")
def stream(state):
  """A file like the published one, in its container."""
  return as_stream(*contiguous(state))


@pytest.fixture(scope="module")
def expected(state):
  """The network's parameters."""
  return from_torch(state)


@pytest.fixture(scope="module")
def packed(state):
  """The .npz of a file whose SHA-256 is all ones."""
  return inception_weights.pack(state, "1" * 64)


@pytest.fixture(scope="module")
def sha256(stream):
  return hashlib.sha256(stream).hexdigest()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  """An empty cache, and no network."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(prepare.urllib.request, "urlopen", None)
  return inception_weights.default_weights_path()


@pytest.fixture
def published(monkeypatch, stream, sha256, tmp_path):
  """Makes our file pass for the published one; returns its path."""
  monkeypatch.setattr(inception_weights, "SHA256", sha256)
  monkeypatch.setattr(inception_weights, "SIZE", len(stream))
  path = tmp_path / "weights.pth"
  path.write_bytes(stream)
  return path


def same(params, expected):
  assert params.keys() == expected.keys()
  for block in params:
    for a, b in zip(leaves(params[block]), leaves(expected[block]), strict=True):
      np.testing.assert_array_equal(a, b)


def leaves(tree):
  return [x for v in tree.values() for x in leaves(v)] if isinstance(tree, dict) else [tree]


def test_a_file_is_prepared_and_found(call, cache, published, expected, sha256):
  code, out, _ = call(prepare.main, "inception", published)
  assert (code, out.strip()) == (0, f"prepared {cache}")
  assert list(cache.parent.iterdir()) == [cache]
  weights = inception_weights.load_weights()
  assert weights[1:] == (sha256, True)
  same(weights.params, expected)
  same(inception_weights.load_weights(published).params, expected)
  code, out, _ = call(prepare.main, "inception")  # it is there: no network is asked
  assert (code, out.strip()) == (0, f"prepared {cache}")


class Answer(io.BytesIO):
  """What urlopen returns."""


def test_it_is_downloaded_from_the_first_place_that_answers(
  call, cache, published, stream, monkeypatch
):
  asked = []

  def urlopen(url, timeout):
    asked.append(url)
    if len(asked) == 1:
      raise OSError("404")
    return Answer(stream)

  monkeypatch.setattr(prepare.urllib.request, "urlopen", urlopen)
  code, out, err = call(prepare.main, "inception")
  assert (code, err) == (0, "")
  assert asked == list(inception_weights.URLS)
  assert f"downloading {inception_weights.URLS[1]}" in out
  assert inception_weights.load_weights().is_published


def test_what_is_stored_and_damaged_is_made_anew(call, cache, published, stream, monkeypatch):
  cache.parent.mkdir(parents=True)
  cache.write_bytes(b"PK damaged")
  monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda url, timeout: Answer(stream))
  assert call(prepare.main, "inception")[0] == 0
  assert inception_weights.load_weights().is_published


def test_without_a_network_one_line_says_what_to_put_where(call, monkeypatch):
  def hang(url, timeout):
    time.sleep(60)

  monkeypatch.setattr(standard, "CONNECT_SEC", 0.5)
  for urlopen in (hang, lambda url, timeout: (_ for _ in ()).throw(OSError("unreachable"))):
    monkeypatch.setattr(prepare.urllib.request, "urlopen", urlopen)
    begun = time.monotonic()
    code, _, err = call(prepare.main, "inception")
    assert time.monotonic() - begun < 5
    assert code == 2
    assert err.startswith("error: cannot download https://github.com/mseitzer/")
    assert err.count("\n") == 1
    for part in (
      "95,628,359 bytes", inception_weights.SHA256, "diffusion_jax.prepare inception FILE.pth",
    ):  # fmt: skip
      assert part in err


def test_a_download_that_breaks_off_is_told(call, published, stream, monkeypatch):
  class Broken(Answer):
    def read(self, size=-1):
      raise TimeoutError("timed out")

  monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda url, timeout: Broken())
  code, _, err = call(prepare.main, "inception")
  assert (code, "cannot download" in err, "timed out" in err) == (2, True, True)
  short = Answer(stream[:1000])
  monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda url, timeout: short)
  code, _, err = call(prepare.main, "inception")
  assert code == 2
  assert f"has 1,000 bytes, the Inception weights have {len(stream):,}" in err


def test_other_files_are_refused_before_they_are_read(
  call, cache, published, stream, sha256, monkeypatch
):
  def never(data, where):
    raise AssertionError("parsed before it was checked")

  monkeypatch.setattr(inception_weights, "read_state_dict", never)
  flipped = bytearray(stream)
  flipped[len(flipped) // 2] ^= 1
  published.write_bytes(flipped)
  found = hashlib.sha256(flipped).hexdigest()
  code, _, err = call(prepare.main, "inception", published)
  assert (code, err.count("\n")) == (2, 1)
  assert f"{published}: SHA-256 {found}, expected {sha256}; run python -m" in err
  published.write_bytes(stream[:-1])
  code, _, err = call(prepare.main, "inception", published)
  assert code == 2
  assert f"{published} has {len(stream) - 1:,} bytes, the Inception weights have" in err
  assert not cache.exists()


def test_paths_that_cannot_be_used(call, published, tmp_path, monkeypatch):
  code, _, err = call(prepare.main, "inception", tmp_path / "none.pth")
  assert (code, "none.pth cannot be read" in err) == (2, True)
  code, _, err = call(prepare.main, "svhn_cropped", published)
  assert (code, "only inception, dinov2, clip, records, cifar10," in err) == (2, True)


def test_a_cache_that_is_a_file_is_not_used(call, published, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(published))
  monkeypatch.setattr(files, "_of_temporary_files", lambda: tmp_path / "instead")
  code, _, err = call(prepare.main, "inception", published)
  assert code == 0, err
  assert (tmp_path / "instead" / "inception").is_dir()


def test_missing_weights_are_told_in_one_line(cache):
  with pytest.raises(UserError) as refusal:
    inception_weights.load_weights()
  text = str(refusal.value)
  assert text.startswith(f"Inception weights not found: {cache}; run python -m diffusion_jax.")
  for part in (*inception_weights.URLS[:1], "95,628,359 bytes", inception_weights.SHA256):
    assert part in text
  assert "\n" not in text


@pytest.mark.parametrize("write", [as_stream, as_zip])
def test_a_network_of_ones_own_is_taken_only_when_asked_for(
  write, state, stream, expected, tmp_path
):
  path, data = tmp_path / "own.pth", stream if write is as_stream else write(*contiguous(state))
  path.write_bytes(data)
  with pytest.raises(UserError, match=f"has {len(data):,} bytes, the Inception weights have"):
    inception_weights.load_weights(path)
  found = hashlib.sha256(data).hexdigest()
  for wanted in (None, found):
    weights = inception_weights.load_weights(path, wanted)
    assert weights[1:] == (found, False)
  same(weights.params, expected)
  with pytest.raises(UserError, match=f"{found}, expected {'0' * 64}; .*--inception_sha256=any"):
    inception_weights.load_weights(path, "0" * 64)


def test_an_npz_of_another_file_is_no_published_one(packed, tmp_path):
  path = tmp_path / "own.npz"
  path.write_bytes(packed)
  with pytest.raises(UserError, match=f"{'1' * 64}, expected {inception_weights.SHA256}"):
    inception_weights.load_weights(path)
  assert inception_weights.load_weights(path, None)[1:] == ("1" * 64, False)


def test_a_damaged_npz_is_noticed(packed, tmp_path):
  path, data = tmp_path / "own.npz", packed
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 1
  for damaged in (data[: len(data) // 2], data[:-1], bytes(flipped), b"", b"no archive"):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"own\.npz is no readable \.npz of Inception weights; run"):
      inception_weights.load_weights(path, None)
  with np.load(io.BytesIO(data)) as file:
    arrays = dict(file)
  arrays["fc.bias"] = arrays["fc.bias"] + 1  # a sound archive with other numbers
  np.savez(path, **arrays)
  with pytest.raises(UserError, match=r"own\.npz is damaged: its arrays do not have the SHA-256"):
    inception_weights.load_weights(path, None)
  with path.open("wb") as file:
    np.savez(file, **{**arrays, "arrays_sha256": np.array([None], object)})
  with pytest.raises(UserError, match="no readable"):  # no pickle is opened
    inception_weights.load_weights(path, None)


def test_the_cache_is_the_users(monkeypatch):
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", os.sep + "home")
  name = "pt_inception-2015-12-05-6726825d.npz"
  assert (
    inception_weights.default_weights_path() == Path("/home/.cache/diffusion_jax/inception") / name
  )


def test_the_published_hash_is_that_of_the_name():
  assert all(inception_weights.SHA256[:8] in url for url in inception_weights.URLS)


def test_files_too_large_for_these_weights_are_refused_before_they_fill_the_memory(
  tmp_path, monkeypatch
):
  """An archive of zeros a thousandth of its content's size; and a file that has no end."""
  monkeypatch.setattr(inception_weights, "MAX_BYTES", 1 << 20)
  monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("it was opened"))
  np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(1 << 21, np.uint8))
  assert (tmp_path / "bomb.npz").stat().st_size < 1 << 13
  with pytest.raises(UserError, match=r"bomb\.npz is no readable \.npz of Inception weights"):
    inception_weights.load_weights(tmp_path / "bomb.npz")
  with pytest.raises(
    UserError, match="/dev/zero has more than 1,048,576 bytes: it is another file"
  ):
    inception_weights.load_weights(Path("/dev/zero"))
