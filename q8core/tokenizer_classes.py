"""How transformers' tokenizer classes read a folder: which parts come from its files, and which from the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from q8core.model.families import FAMILIES

ModelKind = Literal["WordPiece", "BPE", "Unigram"]


@dataclass(frozen=True)
class TokenizerClass:
    """How one class of transformers makes a tokenizer.

    Attributes:
        special_tokens: the class's own special tokens, by key.
        flags: flags of special tokens that the files name but do not list, by key.
        extra: more special tokens, if the files name none.
        model: the kind of model that it builds, with its own normalizer and pre-tokenizer, from the vocabulary in
            tokenizer.json; None: it uses tokenizer.json unchanged.
        around: keys of the tokens that it puts before and after texts; None: as in tokenizer.json.
        separators: tokens between two texts; with one the second text has token type 1, else 0.
        add_prefix_space: whether a text begins with a space unless the config says otherwise.
        unknown_place: index of the unknown token in a Unigram vocabulary; None: looked up by name.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict[str, Mapping[str, bool]])
    extra: tuple[str, ...] = ()
    model: ModelKind | None = None
    around: tuple[str, str] | None = None
    separators: Literal[1, 2] = 1
    add_prefix_space: bool = False
    unknown_place: int | None = None


_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_CLS, _BOS = ("cls_token", "sep_token"), ("bos_token", "eos_token")

_BERT = TokenizerClass(_BERT_TOKENS, model="WordPiece", around=_CLS)
_BERT_HEIR = TokenizerClass(_BERT_TOKENS, around=_CLS)
_MPNET = TokenizerClass(
    _ROBERTA_TOKENS | {"unk_token": "[UNK]"},
    flags={"mask_token": {"lstrip": True}},
    model="WordPiece",
    around=_CLS,
    separators=2,
)
_ROBERTA = TokenizerClass(_ROBERTA_TOKENS, model="BPE", around=_CLS, separators=2)
_XLM_ROBERTA = TokenizerClass(
    _ROBERTA_TOKENS, model="Unigram", around=_BOS, separators=2, add_prefix_space=True, unknown_place=3
)
_CAMEMBERT = TokenizerClass(
    _ROBERTA_TOKENS,
    flags={"mask_token": {"lstrip": True}},
    extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    model="Unigram",
    around=_BOS,
    separators=2,
    add_prefix_space=True,
)
_GENERIC = TokenizerClass()

# names without "Tokenizer" and "Fast"
_CLASSES = {
    **dict.fromkeys(("Bert", "DistilBert", "Electra", "MobileBert", "Lxmert", "SqueezeBert", "LayoutLM"), _BERT),
    **dict.fromkeys(("ConvBert", "DPRQuestionEncoder", "DPRContextEncoder"), _BERT_HEIR),
    "MPNet": _MPNET,
    "Roberta": _ROBERTA,
    "XLMRoberta": _XLM_ROBERTA,
    "Camembert": _CAMEMBERT,
}
_GENERIC_NAMES = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")

DEFAULT_CLASS = FAMILIES["bert"].tokenizer
"""The class for a folder that does not name its kind of model."""


def find_class(name: str) -> TokenizerClass | None:
    """Return the description of the class with this name; None if it is unknown."""
    if name in _GENERIC_NAMES:
        return _GENERIC
    return _CLASSES.get(name.removesuffix("Fast").removesuffix("Tokenizer"))


def known_names() -> list[str]:
    """Return the names of all known classes, for messages."""
    return [*(f"{name}Tokenizer" for name in _CLASSES), _GENERIC_NAMES[0]]
