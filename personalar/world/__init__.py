"""A procedural world of 12 kinds of things: what the embedded base was pretrained on and what its subjects come from."""
