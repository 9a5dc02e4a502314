"""A vision-language model as a judge, by any OpenAI-compatible endpoint."""
