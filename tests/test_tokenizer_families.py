"""Tokenizers of all families: read as AutoTokenizer reads them, with the sequences that it makes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, note, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from q8core.checkpoint.text_input import check_pairs
from q8core.errors import CheckpointError, InputError
from q8core.special_tokens import sequence_template
from q8core.tasks.classify import encode_text
from q8core.tasks.qa import encode_windows
from q8core.tokenizer import copy_tokenizer, load_tokenizer
from tests import tokenizer_folders as small
from tests.test_tokenizer_files import TYPED, new_folder, write_json

Settings = dict[str, Any]

TEXTS = [
    "Good Café in Paris, where?",
    " a film  of\t1994\n",
    "it's not <mask> here</s> <s>[NEW] ",
    "中文 e\u0301té 👩\u200d🚀 \x00\u200b",
    "<S> [new] a<mask>b",
    "",
]
NAMES = {
    "roberta": ["RobertaTokenizer", "RobertaTokenizerFast"],
    "xlm-roberta": ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast"],
    "camembert": ["CamembertTokenizer", "CamembertTokenizerFast"],
    "mpnet": ["MPNetTokenizer", "MPNetTokenizerFast"],
}


def sequences_of(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and types of texts and pairs, as models get them."""
    tokenizer = load_tokenizer(folder)
    found = [encode_text(tokenizer, text, None, 512) for text in TEXTS]
    found += [encode_text(tokenizer, TEXTS[0], text, 512) for text in TEXTS if text]
    return [(one.input_ids, one.token_type_ids) for one in found]


def expected_of(folder: Path) -> list[tuple[list[int], list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [tokenizer(text, return_token_type_ids=True) for text in TEXTS]
    found += [tokenizer(TEXTS[0], text, return_token_type_ids=True) for text in TEXTS if text]
    return [(one["input_ids"], one["token_type_ids"]) for one in found]


BOOLS = st.booleans()
FLAGS = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "add_prefix_space": BOOLS,
        "trim_offsets": BOOLS,
        "do_lower_case": BOOLS,
        "bos_token": st.sampled_from(["<s>", "<pad>", "[NEW]"]),
        "eos_token": st.sampled_from(["</s>", "<unk>"]),
        "cls_token": st.sampled_from(["<s>", "<pad>", {"content": "<s>", **TYPED, "lstrip": True}]),
        "sep_token": st.sampled_from(["</s>", "[new]"]),
        "mask_token": st.sampled_from(["<mask>", "[new]", None, {"content": "<mask>", **TYPED, "rstrip": True}]),
        "unk_token": st.sampled_from(["<unk>", "<pad>"]),
        "additional_special_tokens": st.sampled_from([[], ["[NEW]"], None]),
        "extra_special_tokens": st.sampled_from([["[new]"], {"new_token": "[NEW]"}]),
        "split_special_tokens": BOOLS,
        "added_tokens_decoder": st.sampled_from(
            [{"0": {"content": "<s>", **FLAGS, "lstrip": False}}, {"4": {"content": "<mask>", **FLAGS, "lstrip": True}}]
        ),
    },
)


@pytest.mark.parametrize("family", small.FAMILIES)
@settings(max_examples=30, deadline=None)
@given(config=CONFIGS, kind=st.integers(0, 3), other=BOOLS)
@example(
    config={"cls_token": {"content": "<s>", **TYPED, "lstrip": True}, "added_tokens_decoder": {}}, kind=0, other=False
)
@example(config={"additional_special_tokens": ["[NEW]"], "extra_special_tokens": ["[new]"]}, kind=1, other=True)
def test_files_are_read_as_auto_tokenizer_reads_them_and_a_copys_agree(
    family: str, config: Settings, kind: int, other: bool
) -> None:
    name = [*NAMES[family], "PreTrainedTokenizerFast", None][kind]
    config = config if name is None else {**config, "tokenizer_class": name}
    make = small.FAMILIES[family]
    made = make("never" if family in ("xlm-roberta", "camembert") else family != "mpnet") if other else make()  # pyright: ignore
    with new_folder() as folder:
        small.write_folder(folder, made, family, config)
        note(str(config))
        assert sequences_of(folder) == expected_of(folder)
        copy = small.write_folder(folder.parent / "copy", made, family)
        copy_tokenizer(folder, copy)
        assert sequences_of(copy) == expected_of(copy) == sequences_of(folder)
        again = small.write_folder(folder.parent / "again", made, family)
        copy_tokenizer(copy, again)  # byte for byte, since the first copy's files agree
        assert {file.name: file.read_bytes() for file in again.iterdir()} == {
            file.name: file.read_bytes() for file in copy.iterdir()
        }


@pytest.mark.parametrize("family", small.FAMILIES)
def test_a_folder_without_a_class_is_read_by_its_kind_of_model(family: str, tmp_path: Path) -> None:
    folder = small.write_folder(tmp_path, small.FAMILIES[family](), family)
    assert sequences_of(folder) == expected_of(folder)


@pytest.mark.parametrize("name", ["ConvBertTokenizer", "DPRContextEncoderTokenizerFast"])
def test_classes_that_take_the_file_as_it_stands_bring_their_special_tokens(name: str, tmp_path: Path) -> None:
    made = small.mpnet()
    made.post_processor = processors.ByteLevel()
    config = {"tokenizer_class": name, "cls_token": "<s>", "sep_token": "</s>"}
    folder = small.write_folder(tmp_path, made, "bert", config)
    assert sequences_of(folder) == expected_of(folder)


@pytest.mark.parametrize(
    ("made", "config", "message"),
    [
        (
            small.roberta(),
            {"tokenizer_class": "XLMRobertaTokenizer"},
            "the model is BPE; XLMRobertaTokenizer needs a U",
        ),
        (
            small.mpnet(),
            {"tokenizer_class": "RobertaTokenizer"},
            "the model is WordPiece; RobertaTokenizer needs a BPE",
        ),
        (
            small.roberta(),
            {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": 1},
            "add_prefix_space is 1; true",
        ),
        (
            small.roberta(),
            {"tokenizer_class": "RobertaTokenizer", "trim_offsets": None},
            "trim_offsets is null; true or",
        ),
        (
            small.xlm_roberta(),
            {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": None},
            "bos_token is null; the v",
        ),
    ],
)
def test_what_a_class_cannot_read_is_refused(made: Tokenizer, config: Settings, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(small.write_folder(tmp_path, made, "bert", config))


def test_a_generic_class_does_not_look_at_the_space(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": None, "trim_offsets": "x"}
    folder = small.write_folder(tmp_path, small.roberta(), "roberta", config)
    assert sequences_of(folder) == expected_of(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"add_prefix_space": True}, "add_prefix_space=false; tokenizer_config.json's add_prefix_space true wins"),
        (
            {"add_prefix_space": True, "tokenizer_class": "TokenizersBackend"},
            "tokenizer_config.json has add_prefix_space=true; tokenizer.json's add_prefix_space false wins",
        ),
    ],
)
def test_a_disagreement_on_the_space_is_logged(
    config: Settings, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_tokenizer(small.write_folder(tmp_path, small.roberta(), "roberta", config))
    assert said in caplog.text


@pytest.mark.parametrize("family", small.FAMILIES)
def test_files_that_agree_say_nothing(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_tokenizer(small.write_folder(tmp_path, small.FAMILIES[family](), family))
    assert not caplog.records


@pytest.mark.parametrize("names", [["vocab.json", "merges.txt"], ["sentencepiece.bpe.model"], ["vocab.txt"]])
def test_vocabularies_alone_are_refused_with_the_command_that_converts_them(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json; `q8bert import .* --output DIR` makes it") as said:
        load_tokenizer(tmp_path)
    assert all(name in str(said.value) for name in names)


def template(single: str, pair: str) -> Tokenizer:
    made = small.mpnet()
    tokens = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    return made


@pytest.mark.parametrize("single", ["$A", "$A </s>", "<s> $A", "<s> $A </s> $A", "$A <s> </s>"])
def test_other_sequences_of_a_text_are_refused(single: str) -> None:
    with pytest.raises(CheckpointError, match="does not put special tokens before and after a text"):
        sequence_template(template(single, "<s> $A </s> $B </s>"))


@pytest.mark.parametrize("pair", ["$A $B", "<s> $B </s> $A </s>", "<s> $A $B </s>", "<s> $A </s> $B </s> $A </s>"])
def test_other_sequences_of_pairs_are_refused_where_there_is_a_pair(pair: str) -> None:
    made = template("<s> $A </s>", pair)
    assert encode_text(made, "a", None, 8).input_ids[::2] == [0, 2]
    for use in (
        lambda: encode_text(made, "a", "b", 8),
        lambda: encode_windows(made, "a", "b", 8),
        lambda: check_pairs(Path("m"), made, 2),
    ):
        with pytest.raises(InputError, match="does not put special tokens before, between and after two texts"):
            use()


@pytest.mark.parametrize(
    ("made", "token_types", "refused"),
    [
        (small.roberta(), 1, False),
        (template("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"), 2, False),
        (template("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"), 1, True),
        (template("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"), 0, False),
        (template("<s> $A </s>", "<s> $A </s> $B </s>:2"), 2, True),
    ],
)
def test_pairs_need_the_token_types_of_the_template(made: Tokenizer, token_types: int, *, refused: bool) -> None:
    if not refused:
        check_pairs(Path("m"), made, token_types)
        return
    with pytest.raises(InputError, match="m takes single texts only: it has"):
        check_pairs(Path("m"), made, token_types)


def test_too_little_room_counts_the_special_tokens_of_the_template() -> None:
    made = small.roberta()
    assert len(encode_text(made, "a film", "a plot", 6).input_ids) == 6
    with pytest.raises(InputError, match="max_length 5 leaves no room for text; at least 6"):
        encode_text(made, "a film", "a plot", 5)
    with pytest.raises(InputError, match="at least 6 is needed"):
        encode_windows(made, "a", "a plot", 5)


LETTERS = st.text(st.sampled_from("ab  é.,中\n👩\u200d\u0301'x1"), max_size=60)


@cache
def both(family: str) -> tuple[Tokenizer, Any]:
    """Ours and transformers'."""
    with new_folder() as folder:
        small.write_folder(folder, small.FAMILIES[family](), family)
        return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", small.FAMILIES)
@settings(max_examples=50, deadline=None)
@given(question=LETTERS, context=LETTERS, size=st.integers(16, 40), stride=st.integers(0, 8))
@example(question="who?", context=" a  film\n in Paris", size=16, stride=4)
def test_windows_hold_what_hugging_face_puts_there(
    family: str, question: str, context: str, size: int, stride: int
) -> None:
    tokenizer, theirs = both(family)
    layout = sequence_template(tokenizer).layout(pair=True)
    asked, told = (len(tokenizer.encode(text, add_special_tokens=False)) for text in (question, context))
    # Hugging Face raises where a window has room for nothing new
    assume(question.strip() and context.strip() and told and size - asked - layout.specials > stride)
    windows = encode_windows(tokenizer, question, context, size, stride)
    expected = theirs(
        question, context, truncation="only_second", max_length=size, stride=stride, return_overflowing_tokens=True,
        return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    assert [window.input_ids for window in windows] == expected["input_ids"]
    # of the other windows too, but there tokenizers gives the last token of a context another type
    assert windows[0].token_type_ids == expected["token_type_ids"][0]
    for place, window in enumerate(windows):
        assert set(window.token_type_ids) == {0}
        assert [place for place, index in enumerate(expected.sequence_ids(place)) if index == 1] == list(
            range(window.context_start, window.context_end)
        )
        offsets = expected["offset_mapping"][place][window.context_start : window.context_end]
        outside = [None] * (len(layout.ids) - 1 + asked)
        assert window.offsets == [*outside, *offsets, None]


def test_wrong_json_values_name_their_file(tmp_path: Path) -> None:
    folder = small.write_folder(tmp_path, small.roberta(), None)
    write_json(folder / "config.json", {"model_type": 5})
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is 5; a name is needed"):
        load_tokenizer(folder)


@pytest.mark.parametrize("made", [small.mpnet(), small.xlm_roberta()])
def test_tokens_that_only_the_class_knows_have_its_flags(made: Tokenizer, tmp_path: Path) -> None:
    """The mask takes the space before it; CamemBERT has three special tokens more."""
    family = "mpnet" if made.token_to_id("[UNK]") is not None else "camembert"
    folder = small.write_folder(tmp_path, made, family, {"added_tokens_decoder": {}})
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert repr(ours.get_added_tokens_decoder()) == repr(theirs.added_tokens_decoder)
    text = "a <mask> b<unk>NOTUSED <s>NOTUSED"
    assert ours.encode(text).ids == theirs(text)["input_ids"]
