"""Between requests and engines: the queue, its lanes, the engine thread, and its measured speed."""
