"""Starts a service of one process: the engines load while the HTTP side is imported, which takes as long."""

from __future__ import annotations

from service.core import Service
from service.hosts.listener import bind
from service.hosts.tuning import tune_process
from service.models.registry import ModelRegistry
from service.operations.keys import load_keys
from service.settings import Settings


def start_and_serve(settings: Settings) -> None:
    """Serve until a signal or a failure.

    Raises:
        Q8Error: a checkpoint cannot be opened, the port is taken, or what `service.hosts.single.serve` raises.
    """
    collections = tune_process()
    load_keys(settings)  # a file that cannot be used is told before anything loads
    with bind(settings) as listener:
        service = Service(settings, ModelRegistry.from_settings(settings), warmed=collections.take_over)
        service.start()
        try:
            from service.hosts.single import build, serve

            app = build(service, collections)
        except BaseException:
            service.stop()  # torch aborts if the interpreter exits while a thread computes
            raise
        serve(app, listener, collections)
