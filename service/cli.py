"""`q8bert serve`: reads options into settings, opens the checkpoints and runs the server."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from q8core.errors import InputError
from service.settings import ENV_PREFIX, Settings, load_settings, unknown_variables
from service.telemetry.logs import configure_logging

log = logging.getLogger(__name__)


def _option(name: str, *flags: str) -> Any:
    """Return an option whose help is the setting's description, its variable and its default."""
    field = Settings.model_fields[name]
    default: Any = field.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    note = f"[env: {ENV_PREFIX}{name.upper()}]" + (f" [default: {shown}]" if shown not in (None, "") else "")
    return typer.Option(*flags, help=f"{field.description} {note}", show_default=False)


def serve(
    checkpoint: Annotated[list[Path] | None, _option("checkpoint")] = None,
    model: Annotated[list[str] | None, _option("model")] = None,
    host: Annotated[str | None, _option("host")] = None,
    port: Annotated[int | None, _option("port")] = None,
    backends: Annotated[str | None, _option("backends")] = None,
    default_backend: Annotated[str | None, _option("default_backend")] = None,
    kernel: Annotated[str | None, _option("kernel")] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    max_length: Annotated[int | None, _option("max_length")] = None,
    workers: Annotated[int | None, _option("workers")] = None,
    max_batch_tokens: Annotated[int | None, _option("max_batch_tokens")] = None,
    max_queue_tokens: Annotated[int | None, _option("max_queue_tokens")] = None,
    max_queue_requests: Annotated[int | None, _option("max_queue_requests")] = None,
    request_timeout_s: Annotated[float | None, _option("request_timeout_s")] = None,
    shadow_rate: Annotated[float | None, _option("shadow_rate")] = None,
    shadow_texts: Annotated[bool | None, _option("shadow_texts", "--shadow-texts/--no-shadow-texts")] = None,
    cascade: Annotated[Path | None, _option("cascade")] = None,
    payload_limit: Annotated[int | None, _option("payload_limit")] = None,
    body_timeout_s: Annotated[float | None, _option("body_timeout_s")] = None,
    header_limit: Annotated[int | None, _option("header_limit")] = None,
    header_timeout_s: Annotated[float | None, _option("header_timeout_s")] = None,
    keep_alive_s: Annotated[int | None, _option("keep_alive_s")] = None,
    api_key_file: Annotated[Path | None, _option("api_key_file")] = None,
    protect_metrics: Annotated[bool | None, _option("protect_metrics")] = None,
    admin_key_file: Annotated[Path | None, _option("admin_key_file")] = None,
    model_root: Annotated[list[Path] | None, _option("model_root")] = None,
    watch_s: Annotated[float | None, _option("watch_s")] = None,
    cors_allow_origin: Annotated[list[str] | None, _option("cors_allow_origin")] = None,
    docs: Annotated[bool | None, _option("docs")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
    json_logs: Annotated[bool | None, _option("json_logs", "--json-logs/--no-json-logs")] = None,
    otlp_endpoint: Annotated[str | None, _option("otlp_endpoint")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load, self-test and warm up, print what /info would say, and exit.")
    ] = False,
) -> None:
    """Serve classification and question answering over HTTP, on int8 and fp32.

    Without options it serves the bundled checkpoints on http://127.0.0.1:8000; GET /docs describes the API.
    SIGTERM or Ctrl-C lets accepted requests finish.
    """
    options = {name: value for name, value in locals().items() if name in Settings.model_fields}
    # typer gives an empty list for a repeatable option that is absent
    settings = load_settings({name: value for name, value in options.items() if value != []})
    configure_logging(settings.log_level, json_lines=settings.json_logs)
    for name in unknown_variables():
        log.warning("%s is set but is not a setting of q8bert", name)
    if dry_run:
        _dry_run(settings)
    else:
        _serve(settings)


def _serve(settings: Settings) -> None:
    # engines take a while to import: `q8bert --help` shall not pay for it, nor the supervisor of several workers
    if settings.workers > 1:
        _serve_with_workers(settings)
        return
    from service.hosts.tuning import start_without_collections

    start_without_collections()
    from service.hosts.start import start_and_serve

    start_and_serve(settings)


def _serve_with_workers(settings: Settings) -> None:
    from service.hosts.listener import bind
    from service.hosts.workers.supervisor import serve_with_workers
    from service.operations.keys import load_keys

    if load_keys(settings).admin:
        raise InputError(
            f"--workers is {settings.workers}, and /admin would change the models of one worker only: "
            "take one worker, or no admin key"
        )
    with bind(settings) as listener:
        serve_with_workers(settings, listener)


def _dry_run(settings: Settings) -> None:
    from service.core import Service
    from service.models.registry import ModelRegistry
    from service.operations.info import describe_service
    from service.operations.keys import load_keys

    registry = ModelRegistry.from_settings(settings)
    load_keys(settings)
    service = Service(settings, registry)
    service.start()
    service.lifecycle.wait_until_settled()
    if service.lifecycle.failure is not None:
        raise service.lifecycle.failure
    typer.echo(json.dumps(describe_service(service), indent=2, ensure_ascii=False))
    service.stop()
