"""Networks that several families use; each is a plain module with its cache as an argument."""
