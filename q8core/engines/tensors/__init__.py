"""The tensors of a plan's sites, taken one by one from where they are stored."""
