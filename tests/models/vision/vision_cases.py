"""Small vision transformers with random weights, under the names of each published file."""

import numpy as np

WIDTH, DEPTH, PATCH, GRID, OUT = 128, 2, 14, 3, 32
SIDE = PATCH * GRID


def draw(seed=0):
  rng = np.random.default_rng(seed)
  return lambda *shape, mean=0.0: (rng.normal(size=shape) * 0.2 + mean).astype(np.float32)


def dinov2_state(grid=GRID, depth=DEPTH):
  """Names and shapes of facebookresearch/dinov2, whose positions may have another grid."""
  new = draw()
  state = {
    "cls_token": new(1, 1, WIDTH), "pos_embed": new(1, grid**2 + 1, WIDTH),
    "mask_token": new(1, WIDTH), "patch_embed.proj.weight": new(WIDTH, 3, PATCH, PATCH),
    "patch_embed.proj.bias": new(WIDTH), "norm.weight": new(WIDTH, mean=1), "norm.bias": new(WIDTH),
  }  # fmt: skip
  for i in range(depth):
    state |= {
      f"blocks.{i}.norm1.weight": new(WIDTH, mean=1), f"blocks.{i}.norm1.bias": new(WIDTH),
      f"blocks.{i}.attn.qkv.weight": new(3 * WIDTH, WIDTH),
      f"blocks.{i}.attn.qkv.bias": new(3 * WIDTH),
      f"blocks.{i}.attn.proj.weight": new(WIDTH, WIDTH), f"blocks.{i}.attn.proj.bias": new(WIDTH),
      f"blocks.{i}.ls1.gamma": new(WIDTH, mean=0.5), f"blocks.{i}.ls2.gamma": new(WIDTH, mean=0.5),
      f"blocks.{i}.norm2.weight": new(WIDTH, mean=1), f"blocks.{i}.norm2.bias": new(WIDTH),
      f"blocks.{i}.mlp.fc1.weight": new(4 * WIDTH, WIDTH),
      f"blocks.{i}.mlp.fc1.bias": new(4 * WIDTH),
      f"blocks.{i}.mlp.fc2.weight": new(WIDTH, 4 * WIDTH), f"blocks.{i}.mlp.fc2.bias": new(WIDTH),
    }  # fmt: skip
  return state


def clip_state():
  """Names and shapes of OpenAI's repository, with a part of the text tower."""
  new = draw(1)
  state = {
    "visual.class_embedding": new(WIDTH), "visual.positional_embedding": new(GRID**2 + 1, WIDTH),
    "visual.conv1.weight": new(WIDTH, 3, PATCH, PATCH), "visual.proj": new(WIDTH, OUT),
    "visual.ln_pre.weight": new(WIDTH, mean=1), "visual.ln_pre.bias": new(WIDTH),
    "visual.ln_post.weight": new(WIDTH, mean=1), "visual.ln_post.bias": new(WIDTH),
    "transformer.resblocks.0.ln_1.weight": new(64), "text_projection": new(64, OUT),
  }  # fmt: skip
  for i in range(DEPTH):
    block = f"visual.transformer.resblocks.{i}"
    state |= {
      f"{block}.ln_1.weight": new(WIDTH, mean=1), f"{block}.ln_1.bias": new(WIDTH),
      f"{block}.attn.in_proj_weight": new(3 * WIDTH, WIDTH),
      f"{block}.attn.in_proj_bias": new(3 * WIDTH),
      f"{block}.attn.out_proj.weight": new(WIDTH, WIDTH), f"{block}.attn.out_proj.bias": new(WIDTH),
      f"{block}.ln_2.weight": new(WIDTH, mean=1), f"{block}.ln_2.bias": new(WIDTH),
      f"{block}.mlp.c_fc.weight": new(4 * WIDTH, WIDTH), f"{block}.mlp.c_fc.bias": new(4 * WIDTH),
      f"{block}.mlp.c_proj.weight": new(WIDTH, 4 * WIDTH), f"{block}.mlp.c_proj.bias": new(WIDTH),
    }  # fmt: skip
  return state


def hugging_face_state(state):
  """The same weights under the names of Hugging Face's transformers, written out one by one."""
  ours = {
    "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
    "vision_model.embeddings.position_ids": np.arange(GRID**2 + 1)[None],
    "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
    "vision_model.pre_layrnorm.weight": state["visual.ln_pre.weight"],
    "vision_model.pre_layrnorm.bias": state["visual.ln_pre.bias"],
    "vision_model.post_layernorm.weight": state["visual.ln_post.weight"],
    "vision_model.post_layernorm.bias": state["visual.ln_post.bias"],
    "visual_projection.weight": state["visual.proj"].T,
    "text_projection.weight": state["text_projection"].T,
  }
  for i in range(DEPTH):
    block, new = f"visual.transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
    for part in ("weight", "bias"):
      three = np.split(state[f"{block}.attn.in_proj_{part}"], 3)
      for letter, array in zip("qkv", three, strict=True):
        ours[f"{new}.self_attn.{letter}_proj.{part}"] = array
      ours[f"{new}.self_attn.out_proj.{part}"] = state[f"{block}.attn.out_proj.{part}"]
      ours[f"{new}.layer_norm1.{part}"] = state[f"{block}.ln_1.{part}"]
      ours[f"{new}.layer_norm2.{part}"] = state[f"{block}.ln_2.{part}"]
      ours[f"{new}.mlp.fc1.{part}"] = state[f"{block}.mlp.c_fc.{part}"]
      ours[f"{new}.mlp.fc2.{part}"] = state[f"{block}.mlp.c_proj.{part}"]
  return ours
