"""One run: fine-tune a base model on a task, score the baselines, train with a scheme, score the int8 engine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import FLOAT_FILE, INT8_FILE, MANIFEST_FILE
from q8core.errors import InputError, Q8Error
from q8core.quant import find_scheme
from q8core.reproduce.methods import BASELINES, Scored
from q8core.reproduce.record import FP32, RunRecord
from q8core.tasks.task import Task
from q8core.training.config import TrainConfig
from q8core.training.finetune import finetune
from q8core.training.loop import discard_state
from q8core.training.qat import base_record, train_quantized

ERROR_FILE = "error.txt"


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run.

    Attributes:
        base: folder or hub id of the pretrained model.
        scheme: preset or file of the quantization-aware training; "fp32" of a stage in float before a scheme.
        fp32: recipe of the fine-tuning, with the run's seed.
        qat: recipe of the quantization-aware training, with the run's seed.
        teacher: whether it learns from a float model instead of the labels.
        keep_float: whether a finished run keeps its float weights.
        after: name of the scheme or stage from whose float weights it starts; None for the fine-tuned model.
        taught_by: name of the stage in float that teaches; None for the fine-tuned model.
    """

    base: str
    scheme: str
    fp32: TrainConfig
    qat: TrainConfig
    teacher: bool
    keep_float: bool
    after: str | None = None
    taught_by: str | None = None


def execute(
    record: RunRecord, settings: RunSettings, methods: Sequence[str], task: Task, changed: Callable[[str], None]
) -> None:
    """Compute the scores that the record lacks; an error is recorded too, and the other methods go on.

    Weights that others need and that are not there any more are trained again.

    Args:
        record: the record of this run; saved after each method.
        settings: the settings of the run.
        methods: those of the record's methods to score.
        task: the data.
        changed: called with a method's name when its scores or error have been recorded.
    """
    record.errors.clear()
    record.save()  # before anything else is written there: a later command must know the settings of the run
    (record.folder / ERROR_FILE).unlink(missing_ok=True)
    if not record.weights.is_file() and (settings.keep_float or not record.of_scheme):
        record.scores.pop(record.methods[0], None)
    for name in methods:
        if name not in record.scores:
            with _noting(record, name):
                result = _stage(name, record, settings, task)()
                record.scores[name], record.how[name] = result.scores, result.how
                record.file_bytes |= {method: file.stat().st_size for method, file in result.files.items()}
            changed(name)
        if FP32 in record.errors:
            return
    if record.complete:
        _tidy(record, settings.keep_float)


def _stage(name: str, record: RunRecord, settings: RunSettings, task: Task) -> Callable[[], Scored]:
    """Return the function that computes a method's scores."""
    if name == FP32:
        return lambda: _fine_tune(record, settings, task)
    if name in BASELINES and not record.of_scheme:
        return lambda: BASELINES[name].score(str(record.fine_tuned), task, record.seed)
    return lambda: (_train_float if settings.scheme == FP32 else _train_quantized)(name, record, settings, task)


@contextmanager
def _noting(record: RunRecord, name: str) -> Generator[None]:
    """Record time and error of a method; an interruption is raised."""
    started = time.monotonic()
    try:
        yield
    except Exception as error:  # any error goes into the table, and the other runs go on
        record.errors[name] = str(error) if isinstance(error, Q8Error) else f"{type(error).__name__}: {error}"
        with (record.folder / ERROR_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n{traceback.format_exc()}\n")
    finally:
        record.seconds[name] = round(record.seconds.get(name, 0.0) + time.monotonic() - started, 1)
        record.save()


def _fine_tune(record: RunRecord, settings: RunSettings, task: Task) -> Scored:
    made, how, files = base_record(str(record.fine_tuned)), "executed in float32", {FP32: record.weights}
    if made.get("config") == settings.fp32.to_dict() and record.weights.is_file():
        return Scored(made["scores"], how, files)  # trained, but interrupted before it was recorded
    scores = finetune(settings.base, task, settings.fp32, record.fine_tuned, record.task)
    return Scored(scores["fp32"], how, files)


def _sources(record: RunRecord, settings: RunSettings) -> tuple[Path, Path]:
    """Return the folders of the model to start from and of the teacher, which must have float weights."""
    source, teacher = (
        record.folder.with_name(name) if name else record.fine_tuned for name in (settings.after, settings.taught_by)
    )
    for folder in (record.fine_tuned, teacher, source):
        if not (folder / FLOAT_FILE).is_file():
            raise InputError(f"{folder} has no {FLOAT_FILE}: its own training failed")
    return source, teacher


def _how(what: str, settings: RunSettings, executed: str) -> str:
    after = f", after {settings.after}" if settings.after else ""
    taught = f", taught by {settings.taught_by or 'the fine-tuned model'}" if settings.teacher else ""
    return f"{what}{after}{taught}, executed in {executed}"


def _train_float(name: str, record: RunRecord, settings: RunSettings, task: Task) -> Scored:
    """Train a stage in float, such as a narrower model."""
    source, teacher = _sources(record, settings)
    output = record.checkpoint
    how = _how(f"trained in float, width {settings.qat.width:g}", settings, "float32")
    files = {name: output / FLOAT_FILE, FP32: record.fine_tuned / FLOAT_FILE}
    made = base_record(str(output))
    if made.get("config") == settings.qat.to_dict() and (output / FLOAT_FILE).is_file():
        return Scored(made["scores"], how, files)
    taught_by = str(teacher) if settings.teacher else None
    scores = finetune(str(source), task, settings.qat, output, record.task, teacher=taught_by)
    return Scored(scores["fp32"], how, files)


def _train_quantized(name: str, record: RunRecord, settings: RunSettings, task: Task) -> Scored:
    how = _how(f"trained with scheme {find_scheme(settings.scheme).name}", settings, "int8")
    output = record.checkpoint
    source, teacher = _sources(record, settings)
    files = {name: output / INT8_FILE, **({FP32: record.fine_tuned / FLOAT_FILE} if record.of_scheme else {})}
    kept = not (settings.keep_float and record.of_scheme) or record.weights.is_file()
    if (output / MANIFEST_FILE).is_file() and kept:  # written last
        made = Checkpoint.open(output).manifest
        assert made is not None
        if made.training.get("config") == settings.qat.to_dict():
            return Scored(made.scores["int8"], how, files)
    known = {name: record.scores[name] for name in (FP32, "dynamic") if name in record.scores}
    if record.of_scheme:
        known[FP32] = base_record(str(record.fine_tuned))["scores"]
    scores = train_quantized(
        str(source),
        task,
        settings.qat,
        settings.scheme,
        output,
        record.task,
        settings.keep_float,
        baselines=known,
        teacher=str(teacher) if settings.teacher else None,
    )
    return Scored(scores["int8"], how, files)


def _tidy(record: RunRecord, keep_float: bool) -> None:
    """Keep the int8 checkpoint and all records, and the float weights only if wanted."""
    discard_state(record.fine_tuned)
    discard_state(record.checkpoint)
    if not keep_float:
        record.weights.unlink(missing_ok=True)
