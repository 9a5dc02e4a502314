"""Networks that several families share: ordinary modules that get the KV cache as an argument."""
