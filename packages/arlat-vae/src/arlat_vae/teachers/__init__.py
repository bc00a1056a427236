"""Models whose features latents may be distilled from."""
