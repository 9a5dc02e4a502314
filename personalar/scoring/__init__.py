"""Scorers of generated pictures: CLIP, DINO and the measures derived from them."""
