"""The service's settings: one field per option, each also an environment variable ``Q8BERT_<FIELD>``.

Order of precedence: command line, environment, default. The field descriptions are the help texts of ``q8bert serve``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from q8core.cache import CACHE_VARIABLE
from q8core.errors import InputError
from q8core.native.library import ISA_VARIABLE

Backend = Literal["fp32", "int8"]
ENV_PREFIX = "Q8BERT_"
API_KEYS_VARIABLE = ENV_PREFIX + "API_KEYS"
ADMIN_KEY_VARIABLE = ENV_PREFIX + "ADMIN_KEY"
SECRET_VARIABLES = (API_KEYS_VARIABLE, ADMIN_KEY_VARIABLE)
"""Read by `service.operations.keys`. Not fields of the settings, which are also options and may be shown."""

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names that an operator may give; they appear in URLs, headers, logs and metric labels."""

_ORIGIN = re.compile(r"https?://[^\s/?#,@]+")

_CommaList = NoDecode


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    checkpoint: Annotated[tuple[Path, ...], _CommaList] = Field(
        default=(),
        description="Checkpoint folder to serve under its own name; default: the bundled SST-2 and SQuAD models.",
    )
    model: Annotated[tuple[str, ...], _CommaList] = Field(
        default=(),
        description="NAME=PATH: a checkpoint folder to serve under this name, for requests with the field model. The "
        "first of a task, those of --checkpoint before, answers requests that name none.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    backends: Annotated[tuple[Backend, ...], _CommaList] = Field(
        default=("fp32", "int8"), min_length=1, description="Backends to load, comma separated: fp32, int8."
    )
    default_backend: Backend | None = Field(
        default=None, description="Backend of requests that name none; default: int8 where loaded."
    )
    kernel: Literal["auto", "native", "onednn", "fbgemm"] = Field(
        default="auto",
        description="int8 kernel; auto is native, or the fastest where this CPU has no vector variant of it.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description=(
            "CPU threads of the engines of a process; default: the cores it may use, or its CPU quota if less, "
            "divided among the workers."
        ),
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of the longest input that is read, up to the model's positions; longer texts are cut. "
        "Default: as each checkpoint says, for a Hugging Face folder the model's own.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that serve the port, each with its own queue and its share of the threads.",
    )
    max_batch_tokens: int = Field(
        default=1024, ge=1, description="Tokens computed together; more gives throughput, less gives latency."
    )
    max_queue_tokens: int = Field(
        default=65536, ge=1, description="Tokens that may wait; beyond it requests are answered 429."
    )
    max_queue_requests: int = Field(
        default=1024, ge=1, description="Requests that may wait; beyond it requests are answered 429."
    )
    request_timeout_s: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="Longest time for one request, waiting included."
    )
    shadow_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the answered requests, 0 to 1, that the other backend answers again when idle, to "
        "compare; GET /agreement shows the result.",
    )
    shadow_texts: bool = Field(
        default=False, description="Let GET /agreement show the texts of the worst cases to whoever may ask it."
    )
    cascade: Path | None = Field(
        default=None,
        description="File of thresholds for backend=auto, from `q8bert compare --target-agreement`: int8 answers "
        "first, fp32, or the model that the file names, where int8 is not sure.",
    )
    payload_limit: int = Field(default=2_000_000, ge=1, description="Largest request body in bytes.")
    body_timeout_s: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="Longest time for a request body to arrive; then 408."
    )
    header_limit: int = Field(default=32_768, ge=1024, description="Largest request line and headers in bytes.")
    header_timeout_s: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="Longest time for headers to arrive; then 408."
    )
    keep_alive_s: int = Field(
        default=5, ge=1, description="How long an idle connection stays open; behind a proxy longer than its own."
    )
    api_key_file: Path | None = Field(
        default=None, description="File with API keys or their hashes, one a line; requests must then show one."
    )
    protect_metrics: bool = Field(default=False, description="/metrics needs an API key as well.")
    admin_key_file: Path | None = Field(
        default=None, description="File with the admin keys or their hashes; without one there is no /admin."
    )
    model_root: Annotated[tuple[Path, ...], _CommaList] = Field(
        default=(), description="Folder below which /admin may load checkpoints."
    )
    watch_s: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="How often, in seconds, to look whether the served checkpoints' folders have changed, and to swap "
        "in what passes its self-test; 0: never.",
    )
    cors_allow_origin: Annotated[tuple[str, ...], _CommaList] = Field(
        default=(), description="Origin whose pages may read answers, such as https://app.example.com, or *."
    )
    docs: bool = Field(default=True, description="Serve /docs and /openapi.json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages to log; debug logs every request (never its text)."
    )

    json_logs: bool = Field(
        default=False, description="Log one JSON object per line, and one line per request (never its text)."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+\S*$",
        description="Send OpenTelemetry traces here by OTLP over HTTP, as http://127.0.0.1:4318 (extra: otel).",
    )

    @field_validator("checkpoint", "model", "backends", "model_root", "cors_allow_origin", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        """Split a list in an environment variable: ``a,b``."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for given in value:
            name, sign, path = given.partition("=")
            if not (sign and path and MODEL_NAME.fullmatch(name)):
                raise ValueError(f"{given!r} is not NAME=PATH; a name has letters, digits and . _ -, at most 64")
        return value

    @field_validator("cors_allow_origin")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; expected https://host, https://host:port or *")
        return value

    @field_validator("backends")
    @classmethod
    def _no_duplicates(cls, value: tuple[Backend, ...]) -> tuple[Backend, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _default_is_loaded(self) -> Settings:
        if self.default_backend is not None and self.default_backend not in self.backends:
            raise ValueError(f"default_backend {self.default_backend} is not among backends {','.join(self.backends)}")
        return self

    @model_validator(mode="after")
    def _both_where_needed(self) -> Settings:
        if self.shadow_rate > 0 and len(self.backends) < 2:
            raise ValueError(f"shadow_rate needs the backends fp32 and int8; backends is {','.join(self.backends)}")
        return self

    @model_validator(mode="after")
    def _one_worker_where_models_change(self) -> Settings:
        if self.watch_s and self.workers > 1:
            raise ValueError(
                f"watch_s is {self.watch_s:g} and workers is {self.workers}: each worker would swap at a time of its "
                "own; take one worker, or restart to change models"
            )
        return self

    @property
    def named_models(self) -> tuple[tuple[str, Path], ...]:
        """The names and folders in `model`."""
        parts = (given.partition("=") for given in self.model)
        return tuple((name, Path(path)) for name, _, path in parts)

    @property
    def chosen_default(self) -> Backend:
        """The backend that answers requests that name none."""
        if self.default_backend is not None:
            return self.default_backend
        return "int8" if "int8" in self.backends else self.backends[0]


def load_settings(options: Mapping[str, Any]) -> Settings:
    """Build settings from explicit options (None: not given), the environment and the defaults.

    Raises:
        InputError: a value is wrong; names the option or variable, its value and what is allowed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InputError("; ".join(_problem(dict(p), given) for p in error.errors())) from error


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return variables with our prefix that nothing reads: typos, or those that Kubernetes adds for a Service."""
    known = {
        CACHE_VARIABLE,
        ISA_VARIABLE,
        *SECRET_VARIABLES,
        *(ENV_PREFIX + name.upper() for name in Settings.model_fields),
    }
    return sorted(name for name in environment if name.startswith(ENV_PREFIX) and name not in known)


def _problem(problem: dict[str, Any], given: Mapping[str, Any]) -> str:
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    source = "--" + name.replace("_", "-") if name in given else ENV_PREFIX + name.upper()
    return f"{source} is {problem['input']!r}: {problem['msg']}"
