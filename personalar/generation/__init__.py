"""From prompts to image codes and pictures."""
