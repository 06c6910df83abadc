"""The parts of a model that is computed layer by layer."""
