"""Long texts are encoded beside Python's other threads, by no thread but the caller's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import q8core.tokenizer
from q8core.tokenizer import encode_plain, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TEXTS = st.text(st.sampled_from("abcd ef.,é\u0301🙂中文[]CLS\x00\n")) | st.text()


@given(text=TEXTS)
def test_the_encoding_is_that_of_one_text(tiny_qa: Path, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    tokenizer = load_tokenizer(tiny_qa)
    ours, theirs = encode_plain(tokenizer, text), tokenizer.encode(text, add_special_tokens=False)
    assert (ours.ids, ours.offsets, ours.word_ids) == (theirs.ids, theirs.offsets, theirs.word_ids)


def test_other_threads_go_on_while_a_long_text_is_encoded(tiny_qa: Path) -> None:
    tokenizer, text = load_tokenizer(tiny_qa), "good " * 400_000
    beats, over = [0], threading.Event()

    def beat() -> None:
        while not over.is_set():
            beats[0] += 1
            time.sleep(0.001)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        before = beats[0]
        encode_plain(tokenizer, text)
        during = beats[0] - before
    finally:
        over.set()
        heart.join()
    # a call that holds the lock lets one pass at each of its ends; this text takes some hundred milliseconds
    assert during > 5


def test_every_text_is_encoded_that_way() -> None:
    wrapper = Path(q8core.tokenizer.__file__)
    for path in [*(ROOT / "q8core").rglob("*.py"), *(ROOT / "service").rglob("*.py")]:
        if path != wrapper:
            assert not re.search(r"tokenizer\.encode\w*\(", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(("chosen", "more"), [(None, False), ("false", False), ("true", True)])
def test_encoding_starts_no_threads_unless_the_user_wants_them(
    tiny_qa: Path, chosen: str | None, *, more: bool
) -> None:
    code = """
import os, sys
from pathlib import Path
from q8core.tokenizer import encode_plain, load_tokenizer
tokenizer = load_tokenizer(Path(sys.argv[1]))
before = len(os.listdir("/proc/self/task"))
encode_plain(tokenizer, "good film")
print(len(os.listdir("/proc/self/task")) > before)
if os.fork() == 0:
    encode_plain(tokenizer, "good film")
    os._exit(0)
os.wait()
"""
    clean = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment = clean if chosen is None else clean | {"TOKENIZERS_PARALLELISM": chosen}
    command = [sys.executable, "-c", code, str(tiny_qa)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (found.stdout.strip(), found.stderr) == (str(more), "")
