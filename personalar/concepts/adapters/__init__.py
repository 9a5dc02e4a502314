"""Parts of a model that can be learned and put into a backend."""
