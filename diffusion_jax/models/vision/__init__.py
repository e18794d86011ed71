"""Vision transformers whose features are compared: DINOv2 and the image tower of CLIP."""
