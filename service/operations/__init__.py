"""For operators: loading and swapping models, watching folders, /info, keys."""
