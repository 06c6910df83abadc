"""The tensors of a plan's sites, read one by one from where they are stored."""
