"""The served checkpoints: opening, loading, and choosing the one that a request asks for."""
