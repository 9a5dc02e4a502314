"""Words and tools that every layer shares."""
