"""Judges of pictures: CLIP, DINO, and what they say about a subject's samples."""
