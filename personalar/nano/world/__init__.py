"""A procedural world of 12 kinds of things: the base was pretrained on it, its subjects come from it."""
