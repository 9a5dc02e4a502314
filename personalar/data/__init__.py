"""Subjects, photos and prompts, and the sequences made of them."""
