"""The small base in this package: weights, scorers, and the rendered world that they were trained on."""
