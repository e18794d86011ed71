"""Browse runs on a local page: draw, inpaint, interpolate and walk through latents."""
