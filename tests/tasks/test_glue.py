from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from q8core.errors import InputError
from q8core.tasks.examples import TextExample
from q8core.tasks.glue import GLUE, read_glue
from q8core.tasks.metrics import METRICS
from q8core.tasks.task import read_task
from q8core.tokenizer import load_tokenizer
from tests.tasks.glue_files import PLACES, dev_name, write_glue

# The labels as the official files write them, in the order of their indices in Hugging Face's `glue` data set.
WRITTEN = {
    "cola": ["0", "1"],
    "mrpc": ["0", "1"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["0", "1"],
    "rte": ["entailment", "not_entailment"],
    "sst2": ["0", "1"],
    "stsb": ["0.000", "2.750", "5.000"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "mnli-mm": ["entailment", "neutral", "contradiction"],
    "wnli": ["0", "1"],
}
QUOTED = "he said \"no, 'twice"


def rows_of(task: str) -> list[tuple[str, str, str]]:
    return [(QUOTED, f"ünï {label}", label) for label in WRITTEN[task]]


@pytest.mark.parametrize("task", GLUE)
def test_official_layouts(task: str, tmp_path: Path) -> None:
    data = read_glue(task, write_glue(tmp_path, task, rows_of(task)))
    paired = PLACES[task][1] is not None
    expected = tuple(
        TextExample(QUOTED, f"ünï {label}" if paired else None, float(label) if task == "stsb" else index)
        for index, label in enumerate(WRITTEN[task])
    )
    assert data.train == data.dev == expected
    assert len(data.labels) == (1 if task == "stsb" else len(WRITTEN[task]))
    assert set(GLUE[task].metrics) <= set(METRICS)


def test_compressed_files_and_no_train_file_for_evaluation(tmp_path: Path) -> None:
    write_glue(tmp_path, "rte", rows_of("rte"))
    plain = read_glue("rte", tmp_path)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    assert read_glue("rte", tmp_path) == plain
    (tmp_path / "train.tsv.gz").unlink()
    assert read_glue("rte", tmp_path, with_train=False).dev == plain.dev


def test_a_question_of_qqp_may_be_empty(tmp_path: Path) -> None:
    data = read_glue("qqp", write_glue(tmp_path, "qqp", [("", "why?", "0"), ("why?", "", "1")]))
    assert [(e.text, e.text_pair) for e in data.train] == [("", "why?"), ("why?", "")]


def cut_in_two(folder: Path, task: str, good: int) -> Path:
    """Files with so many good rows and, before the last of them, one that a line break cuts as QQP's are cut."""
    file = write_glue(folder, task, [(QUOTED, f"ünï {i}", WRITTEN[task][0]) for i in range(good)]) / "train.tsv"
    lines = file.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split("\t")
    pieces = ["\t".join(cells[:-1]), f'"\t{cells[-1]}']
    file.write_text("\n".join([*lines[:-1], *pieces, lines[-1]]) + "\n", encoding="utf-8")
    return file


def test_rows_of_qqp_that_are_cut_in_two_are_skipped_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = cut_in_two(tmp_path, "qqp", good=198)
    data = read_glue("qqp", tmp_path)
    assert read_glue("qqp", tmp_path) == data
    assert [example.text_pair for example in data.train] == [f"ünï {i}" for i in range(198)]
    assert data.dev == data.train
    assert caplog.messages == [f"rows with too few cells skipped: file={file} rows=2 first_line=199"]


def test_more_than_one_percent_of_such_rows_is_another_kind_of_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = cut_in_two(tmp_path, "qqp", good=197)
    with pytest.raises(InputError) as caught:
        read_glue("qqp", tmp_path)
    problem = f"{file}, line 198: 5 cells, but the header has 6"
    assert str(caught.value) == f"{problem}; 2 of 199 rows have too few, and only up to 1% are skipped"
    assert not caplog.messages


@pytest.mark.parametrize("task", [task for task in GLUE if task != "qqp"])
def test_no_other_task_skips_rows(task: str, tmp_path: Path) -> None:
    file = write_glue(tmp_path, task, [(QUOTED, "ünï", WRITTEN[task][0])] * 300) / "train.tsv"
    file.write_text(file.read_text(encoding="utf-8") + "just one cell\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 cells, but "):
        read_glue(task, tmp_path)


@pytest.mark.parametrize("task", GLUE)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_bad_files_are_one_sentence_with_file_and_line(task: str, split: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, task, rows_of(task))
    file = folder / ("train.tsv" if split == "train" else dev_name(task))
    good = file.read_bytes()
    lines = good.decode("utf-8-sig").splitlines()
    last = len(lines)
    cells = lines[-1].split("\t")
    cells[PLACES[task][2]] = "maybe"
    cases = [
        ("\n".join([*lines[:-1], "\t".join(cells)]).encode(), f"line {last}: "),
        (good.rstrip(b"\n") + b"\tmore\n", f"line {last}: {len(cells) + 1} cells, but "),
        (good + b"just one cell\n", f"line {last + 1}: 1 cells, but "),
        (good + b"\xff\xfe\n", f"line {last + 1}: not UTF-8"),
        (good.decode().encode("utf-16"), "line 1: not UTF-8"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
    ]
    if task != "cola":
        cases.append((lines[0].encode() + b"\n", "holds no rows"))
        renamed = lines[0].replace(GLUE[task].columns.label, "verdict")
        cases.append(("\n".join([renamed, *lines[1:]]).encode(), f"line 1: no column {GLUE[task].columns.label!r}"))
    for content, words in cases:
        file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_glue(task, folder)
        assert str(file) in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match=rf"has neither {file.name} nor {file.name}\.gz"):
        read_glue(task, folder)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ("five", "the score 'five' is no number"),
        ("-0.1", "the score is -0.1; allowed: 0 to 5"),
        ("5.001", "the score is 5.001; allowed: 0 to 5"),
        ("nan", "the score is nan; allowed: 0 to 5"),
        ("inf", "the score is inf; allowed: 0 to 5"),
        (" ", "the label is empty"),
    ],
)
def test_scores_of_stsb_are_numbers_from_0_to_5(score: str, words: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "stsb", [("a", "b", "2.5"), ("c", "d", score)])
    with pytest.raises(InputError) as caught:
        read_glue("stsb", folder)
    assert f"train.tsv, line 3: {words}" in str(caught.value)


def test_the_metrics_of_each_task(tiny_classifier: Path, tmp_path: Path) -> None:
    """The first one chooses the best weights: that of GLUE's and the paper's tables."""
    expected = dict.fromkeys(("qnli", "rte", "sst2", "mnli", "mnli-mm", "wnli"), ("accuracy",))
    expected |= {"cola": ("mcc",), "mrpc": ("f1", "accuracy"), "qqp": ("f1", "accuracy")}
    expected["stsb"] = ("pearson", "spearman")
    tokenizer = load_tokenizer(tiny_classifier)
    for name in GLUE:
        folder = write_glue(tmp_path / name, name, rows_of(name))
        task = read_task(name, folder, tokenizer, None, 512, with_train=True)
        assert (task.metric, getattr(task, "metrics", None)) == (expected[name][0], expected[name])


@pytest.mark.parametrize(
    ("task", "folder", "train", "dev"),
    [
        ("cola", "CoLA", 8551, 1043),
        ("mrpc", "MRPC", 3668, 408),
        ("qnli", "QNLI", 104742, 5463),
        ("qqp", "QQP", 20000, 3496),
        ("rte", "RTE", 2490, 277),
        ("sst2", "SST-2", 67349, 872),
        ("stsb", "STS-B", 5749, 1500),
    ],
)
def test_real_files(shared_data: Path, task: str, folder: str, train: int, dev: int) -> None:
    data = read_glue(task, shared_data / "glue" / folder)
    assert (len(data.train), len(data.dev)) == (train, dev)
    assert len({example.label for example in data.dev}) >= 2
