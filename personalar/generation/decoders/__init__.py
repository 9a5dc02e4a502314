"""Decoders sample image codes from prompts; all of them give identical images for the same seed."""
