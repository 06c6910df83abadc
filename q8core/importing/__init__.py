"""From a model folder as it lies on the hub to one that every command takes: found, converted, proven, moved."""
