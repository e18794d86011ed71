"""Run several processes as one job: find each other, start together, agree, and leave."""

from diffusion_jax.parallel.collectives import (
  Barrier,
  agree,
  all_true,
  check_shared,
  first_does,
  first_says,
  from_first,
  in_turn,
  is_first,
  share_file,
  tell_all,
)
from diffusion_jax.parallel.process_group import describe_hosts, join_processes, leave
from diffusion_jax.parallel.world import Distributed, World, choose, detect

__all__ = [
  "Barrier",
  "Distributed",
  "World",
  "agree",
  "all_true",
  "check_shared",
  "choose",
  "describe_hosts",
  "detect",
  "first_does",
  "first_says",
  "from_first",
  "in_turn",
  "is_first",
  "join_processes",
  "leave",
  "share_file",
  "tell_all",
]
