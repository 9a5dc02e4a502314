"""Score pictures with a vision-language model on any OpenAI-compatible server."""
