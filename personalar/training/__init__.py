"""Training of one stage with Lightning, and the estimate of its memory."""
