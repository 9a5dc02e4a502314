"""Decoders: callables that turn prompts into image codes with a backend, one token rule for all of them."""
