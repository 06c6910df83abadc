"""The checkpoints that are served: opened, loaded, and which one a request means."""
