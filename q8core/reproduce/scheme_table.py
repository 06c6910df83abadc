"""The Markdown tables of `--schemes`: one for each task, a line for each scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from q8core.reproduce.cells import METRIC_TITLES, failures_text, markdown_table, relative_text, score_text
from q8core.reproduce.data import TITLES
from q8core.reproduce.record import FP32, RunRecord
from q8core.reproduce.scheme_speed import REFERENCES, Speed
from q8core.reproduce.scheme_summary import SchemeLine
from q8core.reproduce.summary import metrics_of

_LEGEND = """\
- **bits**: weights of the layers' linears, word embeddings, inputs of these linears. Where linears differ, the mean \
over their weights, said to be mixed.
- **file**: bytes written, MB = 10^6: `model.int8.safetensors`, in float `model.safetensors`; **times smaller**: than \
fp32's.
- **resident**: the weights that the loaded engine keeps, MiB = 2^20.
- **Scores** in percent on the dev set, mean (sample standard deviation) over the seeds, as executed; \
**relative**: the mean's relative error to fp32.
- **Times** are of a batch (1x32: one sequence of 32 tokens), divided by those of `q8bert` and of fp32: medians over \
rounds in which all took turns, with the checkpoints of the first seed.
- **The papers' claims** are of other models than this one, and of simulations."""


def scheme_markdown(
    base: str,
    environment: Mapping[str, object],
    lines: Mapping[str, Sequence[SchemeLine]],
    speeds: Mapping[str, Speed],
    records: Sequence[RunRecord],
) -> str:
    """Return the whole document.

    Args:
        base: the base model's name.
        environment: of the machine that writes it.
        lines: task -> the lines of its table.
        speeds: task -> its measurements.
        records: all records, whose errors are listed.
    """
    machine = f"{environment['cpu']} ({environment['cpus']} CPUs), torch {environment['torch']}."
    parts = [f"# {base}: schemes", f"{machine} `schemes.json` beside this file has every run.", _LEGEND]
    for task, own in lines.items():
        if own:
            parts += [f"## {TITLES[task]}", _task_table(own), _timed(speeds.get(task))]
    parts.append(failures_text(records))
    return "\n\n".join(part for part in parts if part) + "\n"


def _task_table(lines: Sequence[SchemeLine]) -> str:
    task, shapes = lines[0].task, list(lines[0].times)
    metric = METRIC_TITLES[metrics_of(task)[0]]
    timed = [(shape, name) for shape in shapes for name in REFERENCES]
    head = ("scheme", "bits", "file, MB", "times smaller", "resident, MiB", metric, "seeds", "relative")
    rows: list[tuple[str, ...]] = [(*head, *(f"{shape}, x {name}" for shape, name in timed), "the papers' claims")]
    for line in lines:
        resident = "-" if line.resident_bytes is None else f"{line.resident_bytes / 2**20:.1f}"
        relative = "" if line.scheme == FP32 else relative_text(line.cell)
        sizes = f"{line.file_bytes / 1e6:.2f}", f"{line.compression:.1f}", resident
        scores = score_text(line.cell), str(line.cell.seeds), relative
        times = (_ratio(line.times.get(shape, {}).get(name)) for shape, name in timed)
        rows.append((line.scheme, str(line.bits), *sizes, *scores, *times, line.claim))
    return markdown_table(rows)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _timed(speed: Speed | None) -> str:
    if speed is None:
        return "Times and memory have not been measured yet."
    document = speed.document
    return f"{document['rounds']} rounds, {speed.threads} threads, {document['environment']['cpu']}."
