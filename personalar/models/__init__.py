"""Base models. A backend converts images and prompts to token ids and back, and predicts the next token."""
