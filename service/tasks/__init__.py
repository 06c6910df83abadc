"""What each task means to the service: its bodies, its way from texts to sequences and from logits to answers."""
