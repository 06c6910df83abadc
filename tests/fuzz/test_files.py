"""Whatever bytes a user's file holds: what it says, or one sentence with its name. Never anything else, or made up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from q8core.checkpoint import Checkpoint
from q8core.checkpoint.config import read_config
from q8core.checkpoint.manifest import MANIFEST_FILE
from q8core.errors import Q8Error
from q8core.quant import Scheme, find_scheme, preset
from q8core.tasks.squad import read_squad
from q8core.tasks.tabular import Columns, read_table
from q8core.training.recipe import load_recipe
from service.second_opinion.cascade import Calibration, _read_calibrations
from tests.fuzz.mutations import broken_bytes, broken_json
from tests.training.test_qat import quantize_tiny

FEW = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
DEEP, LONG = b'{"a": ' + b"[" * 50_000, b'{"a": ' + b"9" * 5000 + b"}"
LINES = re.compile(r"\r\n|\r|\n")
PAIRED = Columns("text", "pair", "label")


def found(read: Callable[[Path], Any], file: Path, content: bytes) -> Any:
    """What a reader makes of a file; None for a refusal, which is one short line with the file's name."""
    file.write_bytes(content)
    try:
        return read(file)
    except Q8Error as error:
        message = str(error)
        assert (file.name in message) or (file.name == MANIFEST_FILE and str(file.parent) in message)
        assert "\n" not in message
        assert "\r" not in message
        assert len(message) < 1500 + len(str(file))
        message.encode()  # a terminal shows it
        return None


def text_of(content: bytes) -> str:
    return content.decode("utf-8-sig")


CSV = 'text,pair,label,note\r\n"two\nlines, é","say ""x""",a,\r\nplain,b b,1,z\r\n'
TSV = 'text\tpair\tlabel\tnote\nhe said "no\tb\ta\t\nplain "x"\ty\t1\tz\n'
JSONL = '{"text": "é\\n", "pair": "", "label": "a", "id": [1]}\n\n{"label": 1, "text": "x", "pair": "y"}\n'


@FEW
@given(content=broken_bytes(CSV.encode()))
@example(content=b"\n\n")
@example(content=b'text,pair,label\n"' + b"x," * 70_000)
def test_csv(tmp_path: Path, content: bytes) -> None:
    rows = found(lambda file: read_table(file, PAIRED), tmp_path / "t.csv", content)
    if rows is None:
        return
    csv.field_size_limit(10**9)
    try:
        names, *cells = [row for row in csv.reader(io.StringIO(text_of(content), newline=""), strict=True) if row]
    finally:
        csv.field_size_limit(131_072)
    expected = [dict(zip(names, row, strict=True)) for row in cells]
    assert [(row.text, row.text_pair, row.label) for row in rows] == [
        (row["text"], row["pair"], row["label"].strip()) for row in expected
    ]


@FEW
@given(content=broken_bytes(TSV.encode()))
def test_tsv(tmp_path: Path, content: bytes) -> None:
    rows = found(lambda file: read_table(file, PAIRED), tmp_path / "t.tsv", content)
    if rows is None:
        return
    lines = LINES.split(text_of(content))
    names, *_ = [line.split("\t") for line in lines if line]
    for row in rows:
        cells = dict(zip(names, lines[row.line - 1].split("\t"), strict=True))
        assert (row.text, row.text_pair, row.label) == (cells["text"], cells["pair"], cells["label"].strip())
    assert len(rows) == len([line for line in lines if line]) - 1


@FEW
@given(
    content=st.one_of(
        broken_bytes(JSONL.encode()),
        st.lists(broken_json({"text": "x", "pair": "y", "label": "a", "more": {"k": [1]}}), min_size=1, max_size=3).map(
            lambda lines: b"\n".join(b" ".join(line.split(b"\n")) for line in lines)
        ),
    )
)
@example(content=DEEP)
@example(content=LONG)
@example(content=b'{"text": "\\ud83d", "pair": "y", "label": "a"}')
def test_jsonl(tmp_path: Path, content: bytes) -> None:
    rows = found(lambda file: read_table(file, PAIRED), tmp_path / "t.jsonl", content)
    if rows is None:
        return
    lines = LINES.split(text_of(content))
    assert [row.line for row in rows] == [number for number, line in enumerate(lines, 1) if line.strip()]
    for row in rows:
        value = json.loads(lines[row.line - 1])
        assert (row.text, row.text_pair) == (value["text"], value["pair"])
        assert row.label == str(value["label"]).strip()
        f"{row.text}{row.text_pair}{row.label}".encode()
        assert isinstance(value["label"], str | int | float)


@FEW
@given(content=broken_bytes(gzip.compress(CSV.encode(), mtime=0)))
def test_gzip(tmp_path: Path, content: bytes) -> None:
    rows = found(lambda file: read_table(file, PAIRED), tmp_path / "t.csv.gz", content)
    assert rows is None or [row.text for row in rows] == ["two\nlines, é", "plain"]


CONTEXT = "a tower in paris. 😀 the cat was red."
ASKED = {"id": "1", "question": "where?", "answers": [{"text": "paris", "answer_start": 11}], "is_impossible": False}
AGAIN = {
    "id": 2,
    "question": "who?",
    "answers": [{"text": "cat", "answer_start": 3}, {"text": "red", "answer_start": 0}],
}
SQUAD = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": [ASKED, AGAIN]}]}]}


@FEW
@given(content=broken_json(SQUAD))
@example(content=DEEP)
@example(content=LONG)
def test_squad(tmp_path: Path, content: bytes) -> None:
    examples = found(read_squad, tmp_path / "own.json", content)
    if examples is None:
        return
    paragraphs = [paragraph for article in json.loads(text_of(content))["data"] for paragraph in article["paragraphs"]]
    asked = [(paragraph["context"], qa) for paragraph in paragraphs for qa in paragraph["qas"]]
    assert len(examples) == len(asked) == len({one.id for one in examples})
    for one, (context, qa) in zip(examples, asked, strict=True):
        assert (one.id, one.question, one.context) == (str(qa["id"]), qa["question"], context)
        assert list(one.answers) == [answer["text"] for answer in qa["answers"]]
        assert one.context[one.answer_start :].startswith(one.answers[0])
        assert all(answer.strip() for answer in one.answers)
        for text in (one.id, one.question, one.context):
            assert text.strip()
            text.encode()


SCHEME_TOML = (
    'base = "q8bert"\nema_decay = 0.99\nlinears.weight = { bits = 4 }\nslots.head_output = { start_step = 200 }\n'
    'overrides."layers.0.*" = "float"\n'
)
CHANGES = {
    "base": "static",
    "name": "mine",
    "ema_decay": 0.5,
    "tables": {"weight": {"granularity": "tensor"}},
    "slots": {"head_output": {"start_step": 3}},
    "overrides": {"layers.*": "float"},
}


@FEW
@given(content=broken_bytes(SCHEME_TOML.encode()))
@example(content=b"a = " + b"[" * 50_000)
@example(content=b"a = " + b"9" * 5000)
def test_scheme_toml(tmp_path: Path, content: bytes) -> None:
    scheme = found(lambda file: find_scheme(str(file)), tmp_path / "mine.toml", content)
    assert scheme is None or Scheme.from_dict(scheme.to_dict()) == scheme


@FEW
@given(content=st.one_of(broken_json(CHANGES), broken_json(preset("static").to_dict())))
@example(content=DEEP)
@example(content=LONG)
def test_scheme_json(tmp_path: Path, content: bytes) -> None:
    scheme = found(lambda file: find_scheme(str(file)), tmp_path / "mine.json", content)
    assert scheme is None or json.loads(json.dumps(scheme.to_dict()).encode())


RECIPE = "seeds = 2\nteacher = true\n[fp32]\nepochs = 3.5\nbatch_size = 16\nseed = 1\n[qat]\nlearning_rate = 2e-5\n"
ODD_TOML = st.sampled_from(
    ["inf", "-inf", "nan", "1e400", "9" * 400, "-1", "0", "true", "''", "[]", "{}", "1979-05-27"]
)


@FEW
@given(
    content=st.one_of(
        broken_bytes(RECIPE.encode()),
        st.builds(
            lambda key, value: re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", RECIPE).encode(),
            st.sampled_from(["seeds", "teacher", "epochs", "batch_size", "seed", "learning_rate"]),
            ODD_TOML,
        ),
    )
)
@example(content=b"a = " + b"[" * 50_000)
@example(content=b"a = " + b"9" * 5000)
def test_recipe(tmp_path: Path, content: bytes) -> None:
    recipe = found(lambda file: load_recipe("rte", file.parent), tmp_path / "rte.toml", content)
    if recipe is not None:
        for config in (recipe.fp32, recipe.qat):
            assert int(config.epochs * 1000) > 0
            assert float(config.learning_rate) > 0


ENTRY = Calibration("m", "abc", "classify", 0.25, 0.99, 10, 0.9, 0.99, (0.9, 1.0), 0.1)


@FEW
@given(content=broken_json({"format_version": 1, "calibrations": [asdict(ENTRY) | {"agreement_ci95": [0.9, 1.0]}]}))
@example(content=DEEP)
@example(content=LONG)
def test_cascade(tmp_path: Path, content: bytes) -> None:
    for one in found(_read_calibrations, tmp_path / "cascade.json", content) or []:
        assert isinstance(one.revision, str)
        assert 0 <= float(one.threshold) < float("inf")


CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "id2label": {"0": "a", "1": "b"},
    "label2id": {"a": 0, "b": 1},
    "num_labels": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "dtype": "float32",
    "problem_type": None,
}


@FEW
@given(content=broken_json(CONFIG))
@example(content=json.dumps({**CONFIG, "num_hidden_layers": 0}).encode())
@example(content=json.dumps({**CONFIG, "num_hidden_layers": 10**9}).encode())
@example(content=json.dumps({"model_type": "bert", "num_labels": 10**12}).encode())
@example(content=DEEP)
@example(content=LONG)
@example(content=json.dumps({**CONFIG, "id2label": [1]}).encode())
def test_config(tmp_path: Path, content: bytes) -> None:
    read = found(lambda file: read_config(file.parent), tmp_path / "config.json", content)
    if read is not None:
        config, raw = read, json.loads(content.decode("utf-8-sig"))
        assert (config.spec.hidden, config.spec.layers) == (
            raw.get("hidden_size", 768),
            raw.get("num_hidden_layers", 12),
        )
        assert 1 <= config.spec.layers < 10**5


@pytest.fixture(scope="module")
def made(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_tiny(tiny_classifier, tmp_path_factory.mktemp("fuzz") / "int8", keep_float=False)


def test_manifest(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "int8"))
    valid = json.loads((folder / MANIFEST_FILE).read_text())

    @FEW
    @given(content=broken_json(valid))
    def opens_or_says_why(content: bytes) -> None:
        opened = found(lambda file: Checkpoint.open(file.parent), folder / MANIFEST_FILE, content)
        if opened is not None:
            assert isinstance(opened.max_length, int)
            assert all(isinstance(label, str) for label in opened.labels)

    opens_or_says_why()
