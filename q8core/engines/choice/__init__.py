"""Choice of the kernel that runs a model on this machine."""
