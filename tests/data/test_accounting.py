"""Skipped files are counted by reason, without the details of each."""

from diffusion_jax.data.accounting import count_reasons


def test_reasons_that_name_their_file_are_one():
  reasons = ["Bad CRC-32 for file 'a.png'", "Bad CRC-32 for file 'b.png'", "broken (at 3)"]
  assert count_reasons(reasons) == {"unreadable: Bad CRC-32": 2, "unreadable: broken": 1}
