"""A procedural world of 12 classes of objects, for pretraining the nano base and rendering its subjects."""
