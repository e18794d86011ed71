"""Pieces of work on disk: whole or absent, and never computed twice."""

import numpy as np
import pytest

from diffusion_jax.runs.resumable import Chunks, digest, pieces


@pytest.fixture
def counted():
  """A computation that counts its calls: (compute, calls)."""
  calls = []

  def compute():
    calls.append(1)
    return {"x": np.arange(8.0), "label": np.arange(8)}

  return compute, calls


def test_a_piece_is_computed_once(tmp_path, counted):
  compute, calls = counted
  for _ in range(3):  # as three starts of a program
    found = Chunks(tmp_path / "work", {"seed": 1}).get(0, 8, compute)
    np.testing.assert_array_equal(found["x"], np.arange(8.0))
    np.testing.assert_array_equal(found["label"], np.arange(8))
  assert len(calls) == 1


def test_a_longer_piece_is_cut_and_a_shorter_one_made_anew(tmp_path, counted):
  compute, calls = counted
  chunks = Chunks(tmp_path, {})
  assert len(chunks.get(0, 5, compute)["x"]) == 5
  assert len(chunks.get(0, 8, compute)["x"]) == 8
  assert len(calls) == 1
  np.savez(tmp_path / "000001.npz", x=np.zeros(3), label=np.zeros(3))
  np.testing.assert_array_equal(chunks.get(1, 8, compute)["x"], np.arange(8.0))
  assert len(calls) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_piece_is_computed_anew(tmp_path, counted, capsys, damage):
  compute, calls = counted
  Chunks(tmp_path, {}).get(0, 8, compute)
  path = tmp_path / "000000.npz"
  data = bytearray(path.read_bytes())
  if damage == "flipped":
    place = data.index(np.float64(5.0).tobytes())
    data[place + 7] ^= 1
  path.write_bytes({"truncated": data[:-30], "flipped": data, "empty": b""}[damage])
  np.testing.assert_array_equal(Chunks(tmp_path, {}).get(0, 8, compute)["x"], np.arange(8.0))
  assert len(calls) == 2
  assert "000000.npz is damaged: computed again" in capsys.readouterr().out


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
  (tmp_path / ".000000.123.part.npz").write_bytes(b"half")
  Chunks(tmp_path, {})
  assert not list(tmp_path.glob(".*.part*"))


def test_pieces_cover_every_example_once():
  assert pieces(10, 4) == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
  assert pieces(8, 4) == [(0, 0, 4), (1, 4, 4)]


def test_a_digest_knows_content_not_order():
  assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
  assert digest({"a": 1}) != digest({"a": 2})
