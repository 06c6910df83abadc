"""Between requests and engines: the queue, its lanes, the thread that computes, and how fast it is."""
