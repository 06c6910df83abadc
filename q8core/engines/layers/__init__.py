"""The parts of an encoder that is computed layer by layer."""
