"""Quantization without labels, behind a gate: a model that does not answer like the float model is not written.

Schemes are tried from the fastest to the most careful: static, dynamic, and the better of the two with the layers that
quantization hurts most in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from q8core.arrays import Array
from q8core.engines import build_engine
from q8core.errors import QualityError
from q8core.evaluate import engine_logits
from q8core.quant import Scheme, preset
from q8core.quant.qat.convert import arrays, convert
from q8core.quant.qat.prepare import calibrate, master_weights, prepare
from q8core.tasks.agreement import Agreement
from q8core.tasks.unlabelled import UnlabelledTask
from q8core.training.batches import calibration_batches
from q8core.training.layer_errors import LayerError, in_float, layer_errors
from q8core.training.model import TaskModel, load_model, model_folder
from q8core.training.publish import Origin, publish
from q8core.training.qat import base_record

TARGET = 0.98
"""Default share of answers that a model should keep."""
_MOST_IN_FLOAT = 0.25
"""Largest share of layers that may stay in float: with more, little of the gain is left."""
_WHOLE = 2
"""Number of schemes that are tried before layers stay in float."""
_NAMED = 5
"""Number of layers that a report names."""


@dataclass(frozen=True)
class Tried:
    """A scheme that was tried, and its agreement with the float model."""

    scheme: Scheme
    agreement: Agreement

    def describe(self) -> dict[str, Any]:
        """Plain JSON values."""
        floats = [path for path, change in self.scheme.overrides.items() if change == "float"]
        return {"scheme": self.scheme.name, "in_float": floats, **self.agreement.describe()}


@dataclass
class Report:
    """The schemes that were tried, and the layers that hurt most.

    Attributes:
        target: the agreement to reach.
        texts: number of texts for calibration and for comparison.
        tried: the schemes tried, in order.
        layers: layer errors of the best scheme without layers in float, the worst first.
        written: the one that was written, or None.
    """

    target: float
    texts: Mapping[str, int]
    tried: list[Tried] = field(default_factory=list[Tried])
    layers: list[LayerError] = field(default_factory=list[LayerError])
    written: Tried | None = None

    @property
    def best(self) -> Tried:
        """The scheme that keeps most answers; in a tie, the first."""
        return max(self.tried, key=lambda tried: tried.agreement.share)

    @property
    def passed(self) -> bool:
        """Whether the best scheme reaches the target."""
        return self.best.agreement.share >= self.target

    def describe(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target_agreement": self.target,
            "texts": dict(self.texts),
            "tried": [tried.describe() for tried in self.tried],
            "layers": {error.path: error.mean_difference for error in self.layers},
            "written": self.written.scheme.name if self.written else None,
            "passed": self.passed,
        }

    def worst_layers(self) -> str:
        """Return the names and errors of the layers that hurt most."""
        return ", ".join(f"{error.path} ({error.mean_difference:.4f})" for error in self.layers[:_NAMED])


def quantize_unlabelled(
    source: str,
    task: UnlabelledTask,
    scheme: Scheme | None,
    output: Path,
    *,
    target: float = TARGET,
    keep_float: bool = True,
    write_anyway: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Quantize a fine-tuned model, compare it with the float model on texts not used for calibration, and write it.

    Args:
        source: folder or hub id of the model.
        task: the texts.
        scheme: the only scheme to try; None to try each in turn until one keeps enough answers.
        output: the checkpoint's folder.
        target: the share of answers to keep, 0 to 1.
        keep_float: whether to store the float weights too.
        write_anyway: write the best of what was tried even if it misses the target.
        say: called with a line about the agreement of each scheme, and the layers that hurt most.

    Raises:
        QualityError: no scheme reaches the target; names the layers that hurt most.
    """
    gate = _Gate(source, task)
    report = Report(target, {"calibration": len(task.calibration), "compared": len(task.held_out)})
    chosen: TaskModel | None = None
    for way in _ways(scheme, report):
        model, tensors = gate.quantized(way)
        report.tried.append(Tried(way, gate.agreement(model, way, tensors)))
        say(f"{way.name}: {report.tried[-1].agreement}")
        if report.best is report.tried[-1]:
            chosen = model
        if chosen is model and len(report.tried) <= _WHOLE:
            report.layers = layer_errors(model.plan(way), tensors, gate.floats, task)
            say(f"layers that hurt most, each alone: {report.worst_layers()}")
        if report.tried[-1].agreement.share >= target:
            break
    best = report.best
    if not report.passed and not write_anyway:
        raise QualityError(_refusal(report), report.describe())
    report.written = best
    assert chosen is not None
    record = {"method": "post-training quantization without labels", **report.describe()}
    record["base_record"] = base_record(source)
    publish(chosen, best.scheme, task, Origin(output.name, model_folder(source), record), output, keep_float)
    return report


def _ways(scheme: Scheme | None, report: Report) -> Iterator[Scheme]:
    """Yield the next scheme to try, depending on the report so far."""
    if scheme is not None:
        yield scheme
        return
    yield preset("static")
    yield preset("dynamic")
    better = report.best.scheme
    paths = [error.path for error in report.layers]
    count = 1
    while count <= _MOST_IN_FLOAT * len(paths):
        yield in_float(better, paths[:count])
        count *= 2


def _refusal(report: Report) -> str:
    tried = "; ".join(f"{one.scheme.name} {one.agreement.share:.2%}" for one in report.tried)
    return (
        f"not written: {report.target:.2%} of {report.best.agreement.compared} answers should be those of fp32; they "
        f"are with {tried}. The layers that hurt most: {report.worst_layers()}. Train with quantization "
        "(`q8bert train`), leave these layers in float by a scheme file, ask for less (--target-agreement), or write "
        "it all the same (--write-anyway)"
    )


class _Gate:
    """Holds a float model's answers, and makes and compares quantized models."""

    def __init__(self, source: str, task: UnlabelledTask) -> None:
        self.source, self.task = source, task
        self.features = task.calibration_features()
        model = load_model(source, task.kind)
        self.floats: dict[str, Array] = arrays(master_weights(model.network))
        task.compare_with(self._logits(model, None, self.floats))

    def quantized(self, scheme: Scheme) -> tuple[TaskModel, dict[str, Array]]:
        """Return the model, prepared and calibrated for a scheme, and its tensors."""
        model = load_model(self.source, self.task.kind)
        network = prepare(model.network, model.plan(scheme)).eval()
        if scheme.needs_ranges:
            calibrate(network, calibration_batches(self.features, self.task.kind, model.config.spec.pad_token))
        return model, arrays(convert(network))

    def agreement(self, model: TaskModel, scheme: Scheme, tensors: Mapping[str, Array]) -> Agreement:
        """Compare a quantized model with the float model."""
        return self.task.agreement(self._logits(model, scheme, tensors))

    def _logits(self, model: TaskModel, scheme: Scheme | None, tensors: Mapping[str, Array]) -> Sequence[Any]:
        return engine_logits(build_engine(model.plan(scheme), tensors), self.task.dev_features())
