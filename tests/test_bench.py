"""The benchmark: its arithmetic, its refusals, and short real runs on tiny models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from typer.testing import CliRunner

from q8core.bench import first_answer, models, speed, workloads
from q8core.bench.comparison import FLOOR, FP32_PEER, INT8_PEER, with_references
from q8core.bench.contender import CONTENDERS, FEW_BITS, STOCK
from q8core.bench.contenders import load_contender, load_named_engine
from q8core.bench.environment import environment, usable_cpus
from q8core.bench.floor import FLOORS
from q8core.bench.folder import prepare_few_bits, random_folder
from q8core.bench.models import bench_config
from q8core.bench.padding import pad
from q8core.bench.resident import measure_resident
from q8core.bench.threads import parse_threads
from q8core.bench.timing import Timing, take_turns
from q8core.bench.workloads import Shape, Workload, parse_workload, random_batch
from q8core.cache import CACHE_VARIABLE
from q8core.checkpoint import Checkpoint
from q8core.checkpoint.manifest import INT8_FILE
from q8core.cli import app
from q8core.engines import TokenBatch, build_engine
from q8core.engines.choice.random_weights import RandomFloat, RandomInt8
from q8core.errors import EngineError, InputError
from q8core.quant import Plan, preset

TINY = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
WIDE = {"hidden_size": 128, "intermediate_size": 128}
ALL_FLOORS = [name for names in FLOORS for name in names]


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._SIZES, "bert-base", TINY)


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output, result.exception


@pytest.mark.parametrize("task", ["classify", "qa"])
def test_random_tensors_are_a_complete_checkpoint_and_alike_each_time(task: Any) -> None:
    config = bench_config("minilm-l6", vocab_size=90, num_hidden_layers=1)
    float_plan, int8_plan = (Plan.of(config.spec, config.head(task), scheme) for scheme in (None, preset("q8bert")))
    for made, plan in ((RandomInt8(int8_plan), int8_plan), (RandomFloat(float_plan), float_plan)):
        engine = build_engine(plan, made, "onednn")
        again = build_engine(plan, dict(made), "onednn")
        batch = Shape(2, 6).batch(90)
        logits = engine.infer(batch)
        assert np.array_equal(logits, again.infer(batch))
        assert np.isfinite(logits).all()
        assert float(logits.std()) > 1e-3


def test_the_named_shapes_are_those_of_the_models() -> None:
    def parameters(name: str) -> float:
        config = bench_config(name)
        return sum(tensor.size for tensor in RandomFloat(Plan.of(config.spec, config.head("classify"))).values())

    assert parameters("minilm-l6") == pytest.approx(22.7e6, abs=0.1e6)
    assert bench_config("bert-large").spec.hidden == 1024
    assert bench_config("bert-base").spec.layers == 12


def test_ratios_are_taken_round_by_round() -> None:
    timing = Timing(
        "m", "2x50", "int8", 2, 100, (1.0, 2.0, 4.0), references={STOCK: ("transformers", (3.0, 10.0, 8.0))}
    )
    assert timing.median == 2.0
    assert timing.faster_than(STOCK) == (3.0, 2.5, 4.0)  # the median of 3, 5 and 2, not 8 / 2
    over = timing.over(STOCK)
    assert over is not None
    assert over.median == pytest.approx(1 / 3)
    assert timing.tokens_per_second == pytest.approx(100 / 0.002)
    alone = Timing("m", "1x1", "int8", 2, 1, (1.0,))
    assert alone.faster_than(STOCK) is None
    assert alone.spread == (1.0, 1.0)


def test_latencies_are_percentiles_of_batches_and_the_time_is_their_sum() -> None:
    times = tuple(float(n) for n in range(1, 102))
    timing = Timing("m", "sst2", "int8", 2, 1, (sum(times),), times)
    assert timing.latencies == {"p50": 51.0, "p95": 96.0, "p99": 100.0}
    assert timing.median == sum(times)


def test_the_references_are_the_fastest_peers_and_the_floor_of_the_same_precision() -> None:
    times = {"transformers": 9.0, "a-fp32": 4.0, "b-fp32": 3.0, "a-int8": 2.0}
    times |= {"w4-native": 1.0, "floor-w4-native": 0.25, "a-int4": 1.0}
    times |= {"floor-fp32": 2.0, "floor-int8-onednn": 0.75, "floor-int8-native": 0.5}
    timings = [Timing("m", "w", name, 2, 1, (value,)) for name, value in {**times, "int8-native": 1.0}.items()]
    found = {t.engine: t for t in with_references(timings, ("a-fp32", "b-fp32", "a-int8", "a-int4"))}
    named = {key: name for key, (name, _) in found["int8-native"].references.items()}
    assert named == {STOCK: "transformers", FLOOR: "floor-int8-native", FP32_PEER: "b-fp32", INT8_PEER: "a-int8"}
    assert found["b-fp32"].over(FLOOR) == (1.5, 1.5, 1.5)
    assert found["int8-native"].faster_than(FP32_PEER) == (3.0, 3.0, 3.0)
    assert found["floor-int8-onednn"].over(FLOOR) == (1.5, 1.5, 1.5)
    assert found["a-int4"].over(FLOOR) == (2.0, 2.0, 2.0)
    assert found["w4-native"].over(FLOOR) == (4.0, 4.0, 4.0)
    assert found["w4-native"].faster_than(INT8_PEER) == (2.0, 2.0, 2.0)
    assert FLOOR not in with_references(timings[3:4], ())[0].references


class Recorder:
    """A contender that writes down when it is called."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def bind(self, batch: TokenBatch):
        return lambda: self.order.append(f"{self.name}{batch.tokens}")


def test_each_round_times_each_engine_once_starting_with_another() -> None:
    order: list[str] = []
    rounds: list[int] = []
    contenders = {name: Recorder(name, order) for name in "abc"}
    found = take_turns("m", 2, contenders, Shape(1, 4).workload(), 10, 3, lambda: rounds.append(1))
    assert order == [f"{name}4" for name in ("aabbcc" + "aabbcc" + "bbccaa" + "ccaabb")]  # each once untimed before
    assert len(rounds) == 3
    assert all(len(timing.milliseconds) == 3 for timing in found)


def test_a_turn_runs_all_batches_of_the_workload() -> None:
    order: list[str] = []
    contenders = {name: Recorder(name, order) for name in "ab"}
    (first, _) = take_turns("m", 2, contenders, Workload("w", ((2, 3), (4,))), 10, 2)
    assert order[8:] == ["a5", "a5", "a4", "b5", "b5", "b4", "b5", "b5", "b4", "a5", "a5", "a4"]
    assert len(first.milliseconds) == 2
    assert len(first.batch_milliseconds) == 4
    assert first.milliseconds[1] == sum(first.batch_milliseconds[2:])
    assert first.tokens == 9


def test_the_built_in_lengths() -> None:
    sst2, squad = parse_workload("sst2", None), parse_workload("squad", None)
    assert sst2.describe() == {"batches": 16, "sequences": 256, "tokens": 6446, "padded_tokens": 11600}
    assert squad.describe() == {"batches": 16, "sequences": 64, "tokens": 11374, "padded_tokens": 15612}
    assert squad.longest <= 384
    assert [batch.lengths for batch in squad.batches(50)] == list(squad.lengths)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]
    tokenizer = Tokenizer(WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_lengths_of_sentences_in_a_file(tokenizer_folder: Path) -> None:
    file = tokenizer_folder / "dev.tsv"
    sentences = ["a " * (1 + n % 5) for n in range(300)]
    file.write_text("sentence\tlabel\n" + "".join(f"{text.strip()}\t1\n" for text in sentences))
    found = parse_workload(f"sst2={file}", tokenizer_folder)
    assert found.name == "sst2"
    assert len(found.lengths) == 16
    assert found.lengths[0] == tuple(3 + n % 5 for n in range(16))


def test_lengths_of_windows_spread_over_a_file(tokenizer_folder: Path) -> None:
    """Three questions for each of 64 contexts: the first of each is taken."""
    file = tokenizer_folder / "dev.json"

    def paragraph(number: int) -> dict[str, object]:
        answers = [{"text": "a", "answer_start": 0}]
        asked = [{"id": f"{number}-{n}", "question": "a " * (n + 1), "answers": answers} for n in range(3)]
        return {"context": "a " * (10 + number), "qas": asked}

    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph(n) for n in range(64)]}]}))
    found = parse_workload(f"squad={file}", tokenizer_folder)
    assert [length for batch in found.lengths for length in batch] == [10 + n + 4 for n in range(64)]
    assert len(found.lengths) == 16


@pytest.mark.parametrize("text", ["mnli", "sst2=", "", "=file"])
def test_unknown_workloads_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected KIND or KIND=FILE, KIND one of sst2, squad"):
        parse_workload(text, None)


def test_a_file_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="needs --tokenizer FOLDER"):
        parse_workload("sst2=dev.tsv", None)


def test_padding_masks_what_is_not_there() -> None:
    batch = random_batch((2, 4), 50)
    padded = pad(batch)
    assert padded.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert np.array_equal(padded.input_ids[padded.attention_mask == 1], batch.input_ids)
    assert padded.input_ids.shape == padded.token_type_ids.shape == (2, 4)


@pytest.mark.parametrize("text", ["1", "x8", "8x", "0x8", "2x-3", "axb", "1x2x3"])
def test_malformed_shapes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected SEQUENCESxLENGTH"):
        Shape.parse(text)


@pytest.mark.usefixtures("tiny_shape")
def test_all_contenders_agree_on_what_they_compute() -> None:
    """Same shapes of output for the same batch: the comparison is of equals."""
    batch = Shape(2, 7).batch(100)
    with random_folder("bert-base", "qa") as folder:
        for name in CONTENDERS:
            out: Any = load_contender(name, Checkpoint.open(folder), 1).bind(batch)()
            logits = out if isinstance(out, np.ndarray) else np.stack([out.start_logits, out.end_logits], -1)
            assert logits.size == 2 * 7 * 2


@pytest.fixture
def whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny shape whose half has multiples of 64 inputs, which weights without a zero need."""
    monkeypatch.setitem(models._SIZES, "bert-base", {**TINY, **WIDE})


@pytest.mark.usefixtures("whole_blocks")
def test_engines_of_few_bits_stand_beside_int8_with_floors_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    chosen = ("int8-native", "w4-native", "split-native")
    options = [option for name in chosen for option in ("--engine", name)]
    code, output, _ = run(*options, "--shape", "2x8", "--repeats", "2", "--threads", "1", "--json", str(file))
    assert code == 0
    floors = ("floor-int8-onednn", "floor-int8-native", "floor-w4-native", "floor-split-native")
    timings = json.loads(file.read_text())["timings"]
    assert [timing["engine"] for timing in timings] == [*chosen, *floors]
    assert [timing["ratios"]["floor"]["contender"] for timing in timings[1:3]] == [*floors[2:]]
    assert all(name in output for name in chosen)


@pytest.mark.usefixtures("whole_blocks")
def test_weights_of_few_bits_are_so_in_the_file_and_in_memory() -> None:
    with random_folder("bert-base", "qa") as folder:
        engines: dict[str, Any] = {"int8-native": load_named_engine("int8-native", Checkpoint.open(folder), 1)}
        for name in ("w4-native", "w2-native", "split-native"):
            bits = FEW_BITS[name]
            prepare_few_bits(name, folder)
            engines[name] = load_named_engine(name, Checkpoint.open(folder), 1)
            assert engines[name].model.packed.view.layer[0].query.bits == bits
            assert engines[name].model.packed.view.head.bits == 8
            assert engines[name].model.packed.view.words.bits == (2 if name == "split-native" else 8)
            assert engines[name].describe()["heads"] == (2 if name == "split-native" else 4)
            assert (folder / name / INT8_FILE).stat().st_size < (folder / INT8_FILE).stat().st_size
    sizes = [engine.memory().weights for engine in engines.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.usefixtures("tiny_shape")
def test_padded_and_packed_logits_are_the_same() -> None:
    """Stock transformers, padded and masked, and our fp32 engine, packed, on the same weights; float rounding apart."""
    batch = random_batch((3, 9, 5), 100)
    with random_folder("bert-base", "classify") as folder:
        checkpoint = Checkpoint.open(folder)
        stock: Any = load_contender(STOCK, checkpoint, 1).bind(batch)()
        ours: Any = load_contender("fp32", checkpoint, 1).bind(batch)()
    np.testing.assert_allclose(ours, stock.logits, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("tiny_shape")
def test_a_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    code, output, _ = run("--shape", "1x8", "--shape", "2x16", "--repeats", "2", "--threads", "1", "--json", str(file))
    assert code == 0
    assert f"torch {torch.__version__}" in output
    assert all(name in output for name in CONTENDERS)
    report = json.loads(file.read_text())
    assert report["complete"] is True
    assert [(t["workload"], t["engine"]) for t in report["timings"]] == [
        (shape, name) for shape in ("1x8", "2x16") for name in (*CONTENDERS, *ALL_FLOORS)
    ]
    assert all(len(t["milliseconds"]) == 2 for t in report["timings"])
    assert all(t["ratio_to_transformers"] > 0 for t in report["timings"])
    assert all(t["ratios"]["floor"]["contender"] in ALL_FLOORS for t in report["timings"])
    stock = [t for t in report["timings"] if t["engine"] == "transformers"]
    assert all(t["ratio_to_transformers"] == t["ratios"]["transformers"]["times_faster"] == 1 for t in stock)
    assert report["threads"] == [1]
    assert [(load["threads"], load["engine"]) for load in report["load_seconds"]] == [(1, name) for name in CONTENDERS]


class Fixed:
    """A contender of one thread count, as peers are; writes down which is there, and torch's setting."""

    alive = 0

    def __init__(self, threads: int, order: list[tuple[int, int, int]]) -> None:
        Fixed.alive += 1
        self.threads, self.order, self.itself = threads, order, self  # a cycle, as larger objects have

    def __del__(self) -> None:
        Fixed.alive -= 1

    def bind(self, batch: TokenBatch):
        return lambda: self.order.append((self.threads, torch.get_num_threads(), Fixed.alive))


@pytest.mark.usefixtures("tiny_shape")
def test_several_thread_counts_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders are loaded anew for each count, and those of the one before are gone by then."""
    order: list[tuple[int, int, int]] = []
    monkeypatch.setattr(speed, "load_contender", lambda name, checkpoint, threads: Fixed(threads, order))
    before, file = torch.get_num_threads(), tmp_path / "bench.json"
    try:
        arguments = ("--engine", "fp32", "--repeats", "1", "--shape", "1x8", "--shape", "1x9", "--json", str(file))
        code, output, error = run("--threads", "2,1", "--threads", "2", *arguments)
    finally:
        torch.set_num_threads(before)
    assert code == 0, error
    assert order == [(2, 2, 1)] * 8 + [(1, 1, 1)] * 8  # two workloads, each run four times
    report = json.loads(file.read_text())
    assert report["threads"] == [2, 1]
    assert [(t["threads"], t["workload"]) for t in report["timings"] if t["engine"] == "fp32"] == [
        (threads, shape) for threads in (2, 1) for shape in ("1x8", "1x9")
    ]
    assert [load["threads"] for load in report["load_seconds"]] == [2, 1]
    assert "2 and 1 threads" in output
    assert "bert-base, 1 thread:" in output


def test_thread_counts_are_read_in_order_and_once() -> None:
    assert parse_threads(["4", "1,2", "2, 4"]) == [4, 1, 2]
    assert parse_threads([]) == [usable_cpus()]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1,", "", "1.5"])
def test_wrong_thread_counts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a count of at least 1, or several such as 1,2"):
        parse_threads([text])


@pytest.mark.usefixtures("tiny_shape")
def test_a_run_on_mixed_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workloads._KINDS, "sst2", workloads._KINDS["sst2"]._replace(batch=2, sample=(3, 5, 4)))
    file = tmp_path / "bench.json"
    code, output, error = run("--workload", "sst2", "--engine", "int8-native", "--repeats", "1", "--json", str(file))
    assert code == 0, error
    assert "floor-int8-onednn" in output
    report = json.loads(file.read_text())
    assert report["workloads"]["sst2"] == {"batches": 2, "sequences": 3, "tokens": 12, "padded_tokens": 14}
    assert [t["engine"] for t in report["timings"]] == ["int8-native", "floor-int8-onednn", "floor-int8-native"]
    assert set(report["timings"][0]["batch_percentiles_ms"]) == {"p50", "p95", "p99"}


@pytest.mark.usefixtures("tiny_shape")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_the_second(*args: object) -> object:
        if args[3] == Shape(2, 16).workload():
            raise KeyboardInterrupt
        return take_turns(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(speed, "take_turns", stop_at_the_second)
    file = tmp_path / "bench.json"
    code, output, _ = run("--shape", "1x8", "--shape", "2x16", "--repeats", "1", "--json", str(file))
    assert code == 130
    assert "stopped early" in output
    report = json.loads(file.read_text())
    assert report["complete"] is False
    assert {t["workload"] for t in report["timings"]} == {"1x8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "bert-huge"], "model is 'bert-huge'; allowed: bert-base, bert-large, minilm-l6"),
        (["--engine", "onnx"], "engine is 'onnx'; allowed: transformers, fp32"),
        (["--task", "ner"], "--task is 'ner'"),
        (["--shape", "1x513"], "the longest sequence has 513 tokens; bert-base takes at most 512"),
        (["--workload", "mnli"], "--workload is 'mnli'"),
        (["--workload", "sst2=dev.tsv"], "needs --tokenizer FOLDER"),
        (["--checkpoint", "x"], "--checkpoint is for --memory"),
        (["--threads", "0"], "--threads is '0'"),
        (["--memory", "--threads", "1,2"], "--memory is measured with one thread count; --threads names 2"),
        (["--json", "/nonexistent/out.json"], "the folder /nonexistent does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(arguments: list[str], message: str) -> None:
    _, _, error = run(*arguments)
    assert isinstance(error, InputError)
    assert message in str(error)


def test_memory_of_each_engine_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real measurement, of a model large enough that what a process allocates anyway is small beside it."""
    monkeypatch.setitem(models._SIZES, "bert-base", {**models._SIZES["minilm-l6"], "num_hidden_layers": 1})
    file = tmp_path / "memory.json"
    monkeypatch.setattr(first_answer, "_STARTS", 1)
    engines = ("int8-native", "torch-int8-dynamic")
    code, output, error = run("--memory", *(f"--engine={name}" for name in engines), "--json", str(file))
    assert code == 0, error
    assert "MiB added to a fresh process" in output
    rows = {row["engine"]: row for row in json.loads(file.read_text())["memory"]["bert-base"]}
    assert tuple(rows) == engines
    assert all(row["peak_rss"] >= row["loaded_rss"] > 0 for row in rows.values())
    assert all(row["second_used_uss"] > 0 and row["second_load_seconds"] > 0 for row in rows.values())
    weights = 13e6  # 11.7 MB of word embeddings and 1.8 MB of a layer
    assert rows["int8-native"]["reported"] > weights
    assert rows["int8-native"]["second_loaded_uss"] < 0.15 * weights  # shared
    for row in rows.values():
        assert row["process_rss"] > row["loaded_rss"]
        assert row["first_answer_seconds"] > 0
    assert rows["int8-native"]["process_rss"] < 150e6, "the process of our engine imports what it does not need"


def test_what_fails_in_another_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"measuring the memory of int8-onednn failed: .*CheckpointError: .* is not a"
    ):
        measure_resident("int8-onednn", tmp_path / "nothing", "qa", 1)


@pytest.mark.usefixtures("tiny_shape")
def test_random_folder_is_a_checkpoint_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache of what is derived from it."""
    monkeypatch.setenv(CACHE_VARIABLE, "the user's")
    for task, labels in (("qa", 0), ("classify", 2)):
        with random_folder("bert-base", task) as folder:
            opened = Checkpoint.open(folder)
            assert (opened.task, opened.name, len(opened.labels)) == (task, "bert-base", labels)
            assert opened.float_tensors()[1] is False
            assert Path(os.environ[CACHE_VARIABLE]).parent == folder
        assert not folder.exists()
        assert os.environ[CACHE_VARIABLE] == "the user's"


def test_environment_is_plain_json_and_names_the_cpu() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
