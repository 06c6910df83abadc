"""The tasks: request bodies, encoding of texts to sequences, and from logits to answers."""
