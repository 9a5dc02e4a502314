"""The embedded base: its weights, its scorers and the world that it was trained on."""
