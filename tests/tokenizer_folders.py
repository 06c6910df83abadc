"""Small real tokenizers in the forms that the families' files have: trained or written here, no downloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.conftest import WORDS

_START = ["<s>", "<pad>", "</s>", "<unk>"]
_CORPUS = [
    " ".join(WORDS),
    "Paris, where? It's 1994.",
    "a café, naïve! 中文 的 film",
    "Good  movies; (bad) ones",
    "été",
] * 4


def mask(*, lstrip: bool = True) -> AddedToken:
    return AddedToken("<mask>", lstrip=lstrip, normalized=False, special=True)


@cache
def _trained_bytes() -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=_START, initial_alphabet=alphabet, show_progress=False)  # pyright: ignore
    made.train_from_iterator(_CORPUS, trainer)
    return made.to_str()


def roberta(add_prefix_space: bool = False) -> Tokenizer:
    """Byte-level BPE, as RoBERTa's."""
    made = Tokenizer.from_str(_trained_bytes())
    made.add_special_tokens([mask()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, add_prefix_space)
    return made


@cache
def _trained_pieces() -> str:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=_START, unk_token="<unk>", show_progress=False)  # pyright: ignore
    made.train_from_iterator(_CORPUS, trainer)
    return made.to_str()


def xlm_roberta(scheme: str = "always") -> Tokenizer:
    """Unigram over words that begin with a mark for the space, as XLM-R's; without its map of characters."""
    made = Tokenizer.from_str(_trained_pieces())
    made.add_special_tokens([mask()])
    space = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # pyright: ignore
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return made


def camembert(scheme: str = "always") -> Tokenizer:
    """XLM-R's kind with other tokens at its start, so that the special ones have other ids."""
    state = json.loads(_trained_pieces())
    ordinary = state["model"]["vocab"][4:]
    start = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    state["model"] |= {"vocab": [[token, 0.0] for token in start] + ordinary, "unk_id": 3}
    state["added_tokens"] = [
        {"id": place, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for place, token in enumerate(start)
    ]  # fmt: skip
    made = xlm_roberta(scheme)
    other = Tokenizer.from_str(json.dumps(state))
    other.add_special_tokens([mask()])
    other.pre_tokenizer, other.decoder = made.pre_tokenizer, made.decoder
    other.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 5), ("</s>", 6)]
    )
    return other


def mpnet(lowercase: bool = True) -> Tokenizer:
    """BERT's word pieces between RoBERTa's special tokens, as MPNet's."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", *".,!?'-()", *"éè中文"]
    words = [*_START, "[UNK]", *letters, *(f"##{letter}" for letter in letters), *WORDS, "Paris", "paris"]
    ids = {word: place for place, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    made.add_special_tokens([*_START, "[UNK]", mask()])
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "roberta": roberta,
    "xlm-roberta": xlm_roberta,
    "camembert": camembert,
    "mpnet": mpnet,
}
"""A tokenizer by the model_type of its family."""


def write_folder(folder: Path, made: Tokenizer, model_type: str | None, config: dict[str, Any] | None = None) -> Path:
    """Write a tokenizer with the files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
