"""Run several processes as one job: find each other, start together, agree, and leave."""

from diffusion_jax.parallel.collectives import (
  Barrier,
  agree,
  all_gather_objects,
  all_true,
  broadcast_object,
  check_shared,
  fetch_at_once,
  first_says,
  is_first,
  on_process_0,
  process_0_first,
  share_file,
)
from diffusion_jax.parallel.process_group import describe_hosts, join_processes, leave
from diffusion_jax.parallel.world import Distributed, World, choose, detect

__all__ = [
  "Barrier",
  "Distributed",
  "World",
  "agree",
  "all_gather_objects",
  "all_true",
  "broadcast_object",
  "check_shared",
  "choose",
  "describe_hosts",
  "detect",
  "fetch_at_once",
  "first_says",
  "is_first",
  "join_processes",
  "leave",
  "on_process_0",
  "process_0_first",
  "share_file",
]
