"""Base models: a backend converts prompts and images to token ids and back, and predicts the next token."""
