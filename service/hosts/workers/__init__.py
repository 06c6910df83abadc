"""Several worker processes behind one port: ``q8bert serve --workers N``.

A supervisor binds the port and starts workers, each a complete service with its own queue and engine thread. All accept
from the same listening socket, so that connections which a dead or stuck worker has not accepted go to the others. int8
weights are in a mapped file that all of them share.
"""
