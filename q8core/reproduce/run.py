"""One run: fine-tune a base model on a task, score the baselines, train with quantization, score the int8 engine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import FLOAT_FILE, MANIFEST_FILE
from q8core.errors import Q8Error
from q8core.quant import find_scheme
from q8core.reproduce.methods import BASELINES, Scored
from q8core.reproduce.record import FP32, QAT, RunRecord
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
        scheme: preset or file of the quantization-aware training.
        fp32: recipe of the fine-tuning, with the run's seed.
        qat: recipe of the quantization-aware training, with the run's seed.
        teacher: whether it learns from the fine-tuned model instead of the labels.
        keep_float: whether a finished run keeps its float weights.
    """

    base: str
    scheme: str
    fp32: TrainConfig
    qat: TrainConfig
    teacher: bool
    keep_float: bool


def execute(record: RunRecord, settings: RunSettings, task: Task, changed: Callable[[str], None]) -> None:
    """Compute the scores that the record lacks; an error is recorded too, and the other methods go on.

    Args:
        record: the record of this run; saved after each method.
        settings: the settings of the run.
        task: the data.
        changed: called with a method's name when its scores or error have been recorded.
    """
    record.errors.clear()
    record.save()  # before anything else is written there: a later command must know the settings of the run
    (record.folder / ERROR_FILE).unlink(missing_ok=True)
    float_folder, checkpoint = record.folder / "fp32", record.folder / "qat"
    if not (float_folder / FLOAT_FILE).is_file() and not record.complete:
        record.scores.pop(FP32, None)  # the weights are needed, so the model is trained again
    stages: dict[str, Callable[[], Scored]] = {FP32: lambda: _fine_tune(record, settings, task, float_folder)}
    for name, method in BASELINES.items():
        stages[name] = lambda method=method: method.score(str(float_folder), task, record.seed)
    stages[QAT] = lambda: _train_quantized(record, settings, task, float_folder, checkpoint)
    for name, stage in stages.items():
        if name not in record.scores:
            with _noting(record, name):
                result = stage()
                record.scores[name], record.how[name] = result.scores, result.how
            changed(name)
        if FP32 in record.errors:
            return
    if record.complete:
        _tidy(float_folder, checkpoint, settings.keep_float)


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


def _fine_tune(record: RunRecord, settings: RunSettings, task: Task, output: Path) -> Scored:
    made = base_record(str(output))
    if made.get("config") == settings.fp32.to_dict() and (output / FLOAT_FILE).is_file():
        return Scored(made["scores"], "executed in float32")  # trained, but interrupted before it was recorded
    scores = finetune(settings.base, task, settings.fp32, output, record.task)
    return Scored(scores["fp32"], "executed in float32")


def _train_quantized(record: RunRecord, settings: RunSettings, task: Task, source: Path, output: Path) -> Scored:
    taught = ", taught by the fine-tuned model" if settings.teacher else ""
    how = f"trained with scheme {find_scheme(settings.scheme).name}{taught}, executed in int8"
    if (output / MANIFEST_FILE).is_file():  # written last
        made = Checkpoint.open(output).manifest
        assert made is not None
        if made.training.get("config") == settings.qat.to_dict():
            return Scored(made.scores["int8"], how)
    known = {name: record.scores[name] for name in (FP32, "dynamic") if name in record.scores}
    scores = train_quantized(
        str(source),
        task,
        settings.qat,
        settings.scheme,
        output,
        record.task,
        settings.keep_float,
        baselines=known,
        teacher=str(source) if settings.teacher else None,
    )
    return Scored(scores["int8"], how)


def _tidy(float_folder: Path, checkpoint: Path, keep_float: bool) -> None:
    """Keep the int8 checkpoint and all records, and the float weights only if wanted."""
    discard_state(float_folder)
    discard_state(checkpoint)
    if not keep_float:
        (float_folder / FLOAT_FILE).unlink(missing_ok=True)
