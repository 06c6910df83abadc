"""The network against Hugging Face's BERT with the attention that training gives it: to the bit."""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForPreTraining, BertModel

from q8core.errors import CheckpointError, InputError
from q8core.model.dropout import DropoutRates
from q8core.model.families import FAMILIES
from q8core.model.head import HeadSpec, TaskKind
from q8core.model.network import Network
from q8core.model.sites import float_shapes, sites
from q8core.model.spec import EncoderSpec
from q8core.model.weights import initialize_head, load_network
from tests.conftest import tiny_config, write_vocabulary
from tests.model.oracle import AUTO, LABELS, gradients, inputs, logits_of, loss_of, names, ours, theirs

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}
SPEC = EncoderSpec(2, 32, 4, 48, vocabulary=60, positions=20, token_types=2, norm_epsilon=1e-12)
FULL = EncoderSpec(2, 32, 4, 48, 60, 20, 0, 1e-5, first_position=2, embedding=16, relative_buckets=32, pad_token=1)
CUT = replace(SPEC, heads=3, own_head_size=8)


def autocast(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_logits_and_gradients_are_those_of_bert_to_the_bit(
    kind: TaskKind, precision: str, dropout: float, padded: bool
) -> None:
    bert = theirs("bert", kind, dropout=dropout, **SIZES)
    network, batch = ours(bert, kind, dropout), inputs(60, 2, padded=padded)
    results: list[tuple[Tensor, Any]] = []
    for model in (bert, network):
        model.train(dropout > 0)
        torch.manual_seed(7)
        with autocast(precision):
            output = model(**batch)
        logits = logits_of(output)
        loss_of(logits, kind).backward()
        results.append((logits, torch.get_rng_state()))
    (expected, rng), (found, our_rng) = results
    assert torch.equal(found, expected)
    assert torch.equal(our_rng, rng)
    wanted, got = gradients(bert), gradients(network)
    for name, their_name in names(bert, kind).items():
        assert torch.equal(got[name], wanted[their_name]), name


@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_what_may_be_left_out(kind: TaskKind) -> None:
    bert = theirs("bert", kind, **SIZES)
    batch = inputs(60, 0, padded=False)
    ids = {"input_ids": batch["input_ids"]}
    with torch.no_grad():
        assert torch.equal(ours(bert, kind)(**ids), logits_of(bert(**ids)))
        assert torch.equal(ours(bert, kind)(**batch), logits_of(bert(**batch)))


def test_hidden_states_are_the_outputs_of_the_modules_at_their_paths() -> None:
    bert, batch = theirs("bert", "qa", **SIZES), inputs(60, 2)
    network = ours(bert, "qa")
    found: list[Tensor] = []
    for path in network.hidden_state_paths:
        network.get_submodule(path).register_forward_hook(lambda _module, _args, output: found.append(output))
    with torch.no_grad():
        network(**batch)
        expected = bert(**batch, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 3
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_network_without_a_head_gives_the_last_hidden_states() -> None:
    bert, batch = theirs("bert", "qa", **SIZES), inputs(60, 2)
    encoder = load_network(SPEC, None, {n: t for n, t in ours(bert, "qa").state_dict().items() if "head." not in n})
    with torch.no_grad():
        assert torch.equal(encoder.eval()(**batch), bert.bert(**batch).last_hidden_state)


@pytest.mark.parametrize("head", [None, HeadSpec("first", 3, "tanh"), HeadSpec("every", 2)])
@pytest.mark.parametrize("spec", [SPEC, FULL, CUT], ids=["bert", "everything", "fewer heads"])
def test_parameters_are_the_sites_tensors_in_their_order(spec: EncoderSpec, head: HeadSpec | None) -> None:
    network = Network(spec, head)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert list(shapes.items()) == list(float_shapes(spec, head).items())
    assert list(network.state_dict()) == list(shapes)
    for site in sites(spec, head):
        network.get_submodule(site.path)


def test_heads_may_have_fewer_columns_together_than_the_hidden_state() -> None:
    """A head whose values are 0 is as good as none."""
    whole, head = Network(SPEC, HeadSpec("every", 2)).eval(), slice(0, 24)
    tensors = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    cut = dict(tensors)
    for layer in range(SPEC.layers):
        for slot in ("query", "key", "value"):
            for leaf in ("weight", "bias"):
                name = f"layers.{layer}.{slot}.{leaf}"
                cut[name] = tensors[name][head]
                if slot == "value":
                    tensors[name][24:] = 0
        cut[f"layers.{layer}.attention_output.weight"] = tensors[f"layers.{layer}.attention_output.weight"][:, head]
    batch = inputs(60, 2)
    with torch.no_grad():
        found, expected = (
            load_network(spec, HeadSpec("every", 2), weights).eval()(**batch)
            for spec, weights in ((CUT, cut), (SPEC, tensors))
        )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_every_quantizable_op_is_a_module_that_can_be_replaced() -> None:
    class Twin(nn.Module):
        def __init__(self, path: str, module: nn.Module) -> None:
            super().__init__()
            self.path, self.module = path, module

        def forward(self, *args: Tensor) -> Tensor:
            seen.append(self.path)
            return self.module(*args)

    seen: list[str] = []
    head = HeadSpec("first", 3, "gelu")
    network, batch = Network(FULL, head).eval(), inputs(60, 0, pad=1)
    expected = network(**batch)
    paths = [site.path for site in sites(FULL, head)] + ["layers.0.gelu", "layers.1.gelu", "head.activation"]
    for path in paths:
        network.set_submodule(path, Twin(path, network.get_submodule(path)))
    assert torch.equal(network(**batch), expected)
    assert sorted(seen) == sorted(paths)


def test_copies_and_pickles_compute_the_same() -> None:
    network, batch = Network(FULL, HeadSpec("every", 2)).eval(), inputs(60, 0, pad=1)
    expected = network(**batch)
    assert torch.equal(deepcopy(network)(**batch), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(**batch), expected)


def test_padding_changes_nothing_for_the_tokens_that_are_seen() -> None:
    network = Network(FULL, HeadSpec("every", 2)).eval()
    batch = inputs(60, 0, pad=1)
    with torch.no_grad():
        both = network(**batch)
        batch["input_ids"][batch["attention_mask"] == 0] = 9
        again = network(**batch)
    seen = batch["attention_mask"] != 0
    assert torch.equal(both[seen], again[seen])
    assert not torch.equal(both, again)


def test_a_row_of_padding_alone_is_finite() -> None:
    batch = inputs(60, 0)
    batch["attention_mask"][1] = 0
    for precision in ("fp32", "bf16"):
        with autocast(precision):
            assert bool(torch.isfinite(Network(SPEC, HeadSpec("first", 2))(**batch)).all())


def test_the_longest_sequence_has_a_position_and_a_longer_one_none() -> None:
    network = Network(FULL).eval()
    assert network(torch.full((1, FULL.positions), 5)).shape == (1, FULL.positions, FULL.hidden)
    with pytest.raises(IndexError):
        network(torch.full((1, FULL.positions + 1), 5))


def test_a_mask_of_other_dimensions_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be \(batch, sequence\); found \(1, 1, 1, 4\)"):
        Network(SPEC)(torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 1, 1, 4))


def test_dropout_of_the_head_is_where_its_rates_say() -> None:
    batch = inputs(60, 2)
    for rates in (DropoutRates(head_input=0.5), DropoutRates(head_output=0.5)):
        network = Network(SPEC, HeadSpec("first", 3, "relu"), rates)
        assert not torch.equal(network(**batch), network(**batch))
        assert torch.equal(network.eval()(**batch), network(**batch))


@pytest.mark.parametrize(
    ("source", "pooler"), [(BertForPreTraining, True), (BertModel, True), (BertModel, False)], ids=str
)
@pytest.mark.parametrize("kind", ["classify", "qa"])
def test_a_new_head_has_the_weights_that_fine_tuning_starts_with(
    kind: TaskKind, pooler: bool, source: Any, tmp_path: Path
) -> None:
    write_vocabulary(tmp_path)
    config = tiny_config(60)
    (source(config) if pooler else source(config, add_pooling_layer=False)).save_pretrained(tmp_path)
    torch.manual_seed(11)
    bert = AUTO[kind].from_pretrained(tmp_path, num_labels=LABELS if kind == "classify" else 2)
    rng = torch.get_rng_state()
    family = FAMILIES["bert"]
    state = bert.state_dict()
    stored = {name: state[theirs] for name, theirs in names(bert, kind).items()}
    has_dense = pooler and kind == "classify"
    kept = {n: t for n, t in stored.items() if not n.startswith("head.") or (has_dense and "dense" in n)}
    torch.manual_seed(11)
    network = load_network(
        family.spec(config.to_dict()), family.head(kind, LABELS), kept, new_head_std=config.initializer_range
    )
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


def test_a_new_head_without_names_is_all_of_it() -> None:
    network = Network(SPEC, HeadSpec("first", 2, "tanh"))
    torch.manual_seed(3)
    initialize_head(network, 0.1)
    torch.manual_seed(3)
    dense, output = torch.empty(32, 32).normal_(std=0.1), torch.empty(2, 32).normal_(std=0.1)
    assert network.head is not None
    assert network.head.dense is not None
    assert torch.equal(network.head.dense.weight, dense)
    assert torch.equal(network.head.output.weight, output)
    assert not network.head.output.bias.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.output.weight": None}, "head.output.weight is missing"),
        ({"layers.1.key.bias": None}, "layers.1.key.bias is missing"),
        ({"layers.2.key.bias": torch.zeros(32)}, "the network has no layers.2.key.bias"),
        ({"head.output.bias": torch.zeros(1)}, r"head.output.bias must be \(2,\), not \(1,\)"),
    ],
)
def test_tensors_that_are_not_the_networks_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    head = HeadSpec("every", 2)
    tensors = {**Network(SPEC, head).state_dict(), **change}
    with pytest.raises(CheckpointError, match=message):
        load_network(SPEC, head, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_an_encoders_tensors_are_never_new() -> None:
    tensors = Network(SPEC).state_dict()
    del tensors["layers.0.query.weight"]
    with pytest.raises(CheckpointError, match=r"layers.0.query.weight is missing"):
        load_network(SPEC, HeadSpec("every", 2), tensors, new_head_std=0.02)


def test_a_network_has_copies_of_the_tensors() -> None:
    tensors = Network(SPEC).state_dict()
    network = load_network(SPEC, None, tensors)
    with torch.no_grad():
        network.embedding_norm.weight.zero_()
    assert bool(tensors["embedding_norm.weight"].all())


def test_importing_the_network_imports_no_transformers() -> None:
    code = "import sys, q8core.model.weights; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
