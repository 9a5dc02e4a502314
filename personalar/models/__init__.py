"""Backends: what turns images and prompts into token ids and back, and predicts the next one."""
