"""Photos of a folder, with the masks and captions beside them: read, checked and converted."""
