"""Generate image codes from prompts, and decode them to pictures."""
