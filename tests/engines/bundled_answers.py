"""What each kernel answers on the bundled checkpoints, as a program: instruction sets are fixed when libraries load."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import service
from q8core.checkpoint import Checkpoint
from q8core.engines import load_engine
from q8core.errors import EngineError
from q8core.evaluate import engine_logits
from q8core.tasks.classify import encode_text
from q8core.tasks.qa import best_answers, encode_windows
from q8core.tasks.task import make_feature

BUNDLED = Path(service.__file__).parent / "checkpoints"
KERNELS = {
    "fp32": ("fp32", "auto"),
    "fp32-onednn": ("fp32", "onednn"),
    **{name: ("int8", name) for name in ("native", "onednn", "fbgemm")},
}
SENTENCES = (
    "a gripping, funny film",
    "the plot is a mess and the jokes are worse",
    "it 's neither good nor bad , just long",
    "Nothing about it works; even the score feels tired, and by the second hour I was watching the exit sign instead.",
    "one of the year 's best films , tender and surprising",
    "wow",
)
CONTEXT = (
    "The Eiffel Tower was built from 1887 to 1889 by the company of Gustave Eiffel. It stands in Paris, on the Champ "
    "de Mars, and was the world's tallest structure until the Chrysler Building in New York was finished in 1930. "
    "Nearly seven million people climb it each year."
)
QUESTIONS = (
    "Who built the Eiffel Tower?",
    "Where does it stand?",
    "When was the Chrysler Building finished?",
)


@cache
def opened(name: str) -> Checkpoint:
    """A bundled checkpoint, verified once."""
    return Checkpoint.open(BUNDLED / name)


def answers(kernel: str) -> dict[str, Any]:
    """What one of `KERNELS` says: labels or spans with their scores, or why it refuses."""
    try:
        return {**_sentiments(*KERNELS[kernel]), **_spans(*KERNELS[kernel])}
    except EngineError as error:
        return {"refused": str(error)}


def _sentiments(backend: str, kernel: str) -> dict[str, Any]:
    checkpoint = opened("sst2-minilm-l6")
    engine, tokenizer = load_engine(checkpoint, backend, kernel, threads=1), checkpoint.tokenizer()
    encoded = [encode_text(tokenizer, text, None, 128) for text in SENTENCES]
    logits = engine_logits(engine, [make_feature(each.input_ids, each.token_type_ids) for each in encoded])
    found = {
        text: (checkpoint.labels[int(row.argmax())], float(1 / np.exp(row - row.max()).sum()))
        for text, row in zip(SENTENCES, logits, strict=True)
    }
    facts = engine.describe()
    # With the kernel's own account of itself, which shows whether a switch had an effect.
    return {"isa": facts["isa"], "exactness": facts.get("exactness"), "sentiments": found}


def _spans(backend: str, kernel: str) -> dict[str, Any]:
    checkpoint = opened("squad-minilm-l6")
    engine, tokenizer = load_engine(checkpoint, backend, kernel, threads=1), checkpoint.tokenizer()
    found: dict[str, tuple[str, float]] = {}
    for question in QUESTIONS:
        windows = encode_windows(tokenizer, question, CONTEXT)
        logits = engine_logits(engine, [make_feature(each.input_ids, each.token_type_ids) for each in windows])
        best = best_answers(windows, logits, CONTEXT)[0]
        found[question] = (best.answer, best.score)
    return {"spans": found}


if __name__ == "__main__":
    print(json.dumps({kernel: answers(kernel) for kernel in KERNELS}))
