"""Tables of schemes from records made by hand: sizes, scores, times and claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from q8core.bench.environment import environment
from q8core.checkpoint.config import ModelConfig, read_config
from q8core.errors import InputError
from q8core.quant import PRESETS
from q8core.reproduce.claims import CLAIMS, claim_of
from q8core.reproduce.record import FP32, RunRecord, check_same
from q8core.reproduce.scheme_plot import draw_schemes
from q8core.reproduce.scheme_speed import Speed
from q8core.reproduce.scheme_summary import SchemeLine, scheme_lines
from q8core.reproduce.scheme_table import scheme_markdown
from q8core.training.config import TrainConfig
from tests.training.test_qat import quantize_tiny


@pytest.fixture
def config(tiny_classifier: Path) -> ModelConfig:
    return read_config(tiny_classifier)


def made(seed: int, scheme: str | None, score: float, size: int = 0) -> RunRecord:
    identity = {"base": {"sha256": "b"}, "data": {"train": 1, "dev": 1}, "fp32": TrainConfig().to_dict()}
    name = scheme or FP32
    if scheme:
        identity |= {"scheme": scheme, "qat": TrainConfig().to_dict(), "teacher": True, "after": None}
    sizes = {FP32: 400_000_000, **({scheme: size} if scheme else {})}
    folder = Path(f"seed-{seed}") / ("schemes" if scheme else "") / (scheme or "")
    scores = {name: {"accuracy": score}}
    return RunRecord(folder, "sst2", seed, identity, scores, methods=(name,), file_bytes=sizes)


def lines_of(config: ModelConfig) -> tuple[list[SchemeLine], Speed]:
    fine_tuned = [made(1, None, 0.90), made(2, None, 0.92)]
    schemes = [made(1, "q8bert", 0.89, 100_000_000), made(2, "q8bert", 0.90, 100_000_000)]
    schemes.append(made(2, "q8bert-paper", 0.46, 80_000_000))
    ratios = {"1x32": {"q8bert": {"q8bert": 1.0, "fp32": 0.25}, "q8bert-paper": {"q8bert": 0.5, "fp32": 0.125}}}
    document = {"rounds": 11, "environment": {"cpu": "a CPU"}}
    speed = Speed(2, {"fp32": 2**22, "q8bert": 2**20}, ratios, document)
    return scheme_lines("sst2", fine_tuned, schemes, ["q8bert-paper", "q8bert"], speed, config), speed


def test_a_line_has_what_the_records_and_measurements_say(config: ModelConfig) -> None:
    lines, speed = lines_of(config)
    text = scheme_markdown("tiny", environment(), {"sst2": lines}, {"sst2": speed}, [])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    head, fp32, paper, q8bert = rows  # in the order of the command
    assert head[8:] == ["1x32, x q8bert", "1x32, x fp32", "the papers' claims"]
    assert fp32 == ["fp32", "32-32-32", "400.00", "1.0", "4.0", "91.00 (1.41)", "2", "", "-", "-", ""]
    claim = "Q8BERT: 4 times smaller; 92.24, fp32 92.36 (BERT-base, simulated)"
    error = "\N{MINUS SIGN}1.65 %"
    assert q8bert == ["q8bert", "8-8-8", "100.00", "4.0", "1.0", "89.50 (0.71)", "2", error, "1.00", "0.25", claim]
    # against fp32 of the seed that it has
    assert paper[4:10] == ["-", "46.00", "1", "\N{MINUS SIGN}50.00 %", "0.50", "0.12"]
    assert "11 rounds, 2 threads, a CPU." in text


def test_errors_are_listed_and_what_is_not_measured_is_said(config: ModelConfig) -> None:
    failed = made(1, "q8bert", 0.9, 1000)
    failed.scores, failed.errors = {}, {"q8bert": "no memory\nleft"}
    done = made(2, "q8bert", 0.9, 1000)
    fine_tuned = [made(1, None, 0.9), made(2, None, 0.9)]
    lines = scheme_lines("sst2", fine_tuned, [failed, done], ["q8bert"], None, config)
    text = scheme_markdown("tiny", environment(), {"sst2": lines}, {}, [failed, done])
    assert "- **SST-2, seed 1**, q8bert: no memory left" in text
    assert "Times and memory have not been measured yet." in text
    assert scheme_lines("sst2", fine_tuned, [failed], ["q8bert"], None, config) == []


def test_bits_that_a_model_chose_are_those_of_its_checkpoint(
    tiny_classifier: Path, tmp_path: Path, config: ModelConfig
) -> None:
    chosen = tmp_path / "chosen.toml"
    chosen.write_text('base = "q8bert"\noverrides."*.ffn_*".weight.bits = 4\n')
    record = replace(made(1, "qbert-mp", 0.89, 1000), folder=tmp_path / "schemes" / "qbert-mp")
    quantize_tiny(tiny_classifier, record.checkpoint, str(chosen))
    line = scheme_lines("sst2", [made(1, None, 0.9)], [record], ["qbert-mp"], None, config)[1]
    assert str(line.bits) == "6-8-8, mixed"


def test_claims_name_their_model_and_mkq_bert_has_no_score() -> None:
    assert "(BERT-base, simulated)" in claim_of("q8bert", "sst2")
    assert "14.9 times smaller" in claim_of("ternary", "sst2")
    assert "92.3, fp32 93.2 (BiT's run) (BERT-base)" in claim_of("binary", "sst2")
    assert "MRPC" not in claim_of("binary", "mrpc")
    assert claim_of("q8bert-smooth", "sst2") == ""
    assert not any(claim.scores for claim in CLAIMS["mkq"])
    assert CLAIMS.keys() <= PRESETS.keys()


def test_a_schemes_record_is_the_same_only_with_what_it_comes_after() -> None:
    record = made(1, "q8bert", 0.9)
    part = {"scheme": "four", "qat": TrainConfig().to_dict(), "teacher": True, "after": None}
    record.identity["after"] = {**part, "qat": {"epochs": 3.0}}  # made before there were other fields
    check_same(record, {**record.identity, "after": part})
    with pytest.raises(InputError, match=r"after.qat.learning_rate was 5e-05 and is 0.5"):
        check_same(record, {**record.identity, "after": {**part, "qat": TrainConfig(learning_rate=0.5).to_dict()}})
    with pytest.raises(InputError, match=r"after.scheme was 'four' and is 'not known'"):
        check_same(record, {**record.identity, "after": None})


def test_the_picture_has_a_point_for_each_scheme_and_names_it(config: ModelConfig) -> None:
    lines, _ = lines_of(config)
    (axes,) = draw_schemes({"sst2": lines}, "tiny", environment()).axes
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == ["fp32\n32-32-32", "q8bert\n8-8-8", "q8bert-paper\n8-8-8"]
    assert axes.get_title() == "SST-2, 2 seeds"
