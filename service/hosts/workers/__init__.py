"""Several worker processes behind one port: ``q8bert serve --workers N``.

A supervisor binds the port and starts workers, each a whole service with its own queue and engine thread. They accept
from the same listening socket, so that what a dead or stuck one has not accepted is served by the others. int8 weights
lie in a mapped file that all of them share.
"""
