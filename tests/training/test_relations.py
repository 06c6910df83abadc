from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from transformers import BertForSequenceClassification

from q8core.errors import InputError
from q8core.model.sites import PROJECTIONS
from q8core.quant import preset
from q8core.quant.qat.prepare import prepare
from q8core.tokenizer import load_tokenizer
from q8core.training.config import TrainConfig
from q8core.training.distillation import Distillation
from q8core.training.model import load_model
from q8core.training.processes import Processes
from q8core.training.relations import relation_loss
from tests.conftest import save_tiny, tiny_config
from tests.training.test_distillation import LABELS, batch_of, only, pair_of

GENERATOR = torch.Generator().manual_seed(0)


def outputs(columns: int, batch: int = 3, length: int = 7) -> dict[str, Tensor]:
    return {slot: 2 * torch.randn(batch, length, columns, generator=GENERATOR) for slot in PROJECTIONS}


def mask_of(*lengths: int, width: int = 7) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def slow(student: dict[str, Tensor], teacher: dict[str, Tensor], lengths: tuple[int, ...], heads: int) -> float:
    """Row by row, head by head and query by query, on the visible tokens alone, in float64."""
    rows: list[float] = []
    for row, length in enumerate(lengths):
        found: list[float] = []
        for head in range(heads):
            for query in range(length):
                both = 0.0
                for one, other in (("query", "key"), ("value", "value")):
                    logs: list[np.ndarray] = []
                    for each in (student, teacher):
                        size = each[one].shape[-1] // heads
                        part = slice(head * size, (head + 1) * size)
                        q = each[one][row, query, part].double().numpy()
                        k = each[other][row, :length, part].double().numpy()
                        logs.append(log_softmax(k @ q / math.sqrt(size)))
                    ours, theirs = logs
                    both += float((np.exp(theirs) * (theirs - ours)).sum())
                found.append(both)
        rows.append(float(np.mean(found)))
    return float(np.mean(rows))


@pytest.mark.parametrize(("columns", "heads"), [((24, 24), 4), ((24, 48), 4), ((24, 36), 12), ((24, 8), 1)])
def test_it_is_that_of_single_queries(columns: tuple[int, int], heads: int) -> None:
    student, teacher = (outputs(each) for each in columns)
    expected = slow(student, teacher, (7, 4, 1), heads)
    found = relation_loss(student, teacher, mask_of(7, 4, 1), heads)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


def test_the_same_relations_have_no_loss_and_no_gradient() -> None:
    teacher = outputs(24)
    student = {slot: value.clone().requires_grad_() for slot, value in teacher.items()}
    loss = relation_loss(student, teacher, mask_of(7, 4, 2), 4)
    loss.backward()
    assert loss.item() == 0.0
    assert all(float(value.grad.abs().max()) < 1e-6 for value in student.values() if value.grad is not None)


def test_its_gradient_is_that_of_differences() -> None:
    """In single precision, so with a wide step: (f(x + e v) - f(x - e v)) / 2 e along random directions."""
    student, teacher = outputs(8), outputs(12)
    mask = mask_of(7, 5, 3)
    for slot in PROJECTIONS:
        leaf = student[slot].clone().requires_grad_()
        relation_loss({**student, slot: leaf}, teacher, mask, 4).backward()
        assert leaf.grad is not None
        assert not leaf.grad[mask == 0].any()
        direction = leaf.grad / leaf.grad.norm() + torch.randn(leaf.shape, generator=GENERATOR) / 20
        step = 1e-2
        ends = [
            slow({**student, slot: student[slot].double() + sign * step * direction}, teacher, (7, 5, 3), 4)
            for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((leaf.grad * direction).sum()) == pytest.approx(expected, rel=1e-3), slot


def test_padding_has_no_influence_on_models(tmp_path: Path) -> None:
    student, master = pair_of(*(save_tiny(tmp_path / str(seed), "classify", seed) for seed in (2, 3)))
    loss = Distillation(student, master, only("distill_relations"))
    values = [loss(student.train(), batch_of(padding)).item() for padding in (0, 7)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] > 0.01


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_classifier: Path) -> None:
    student, master = pair_of(tiny_classifier, tiny_classifier)
    assert Distillation(student, master, only("distill_relations"))(student.train(), batch_of()).item() == 0.0


def test_the_students_outputs_are_those_after_its_quantization(tiny_classifier: Path) -> None:
    """The same weights: all that differs is the rounding of the student's inputs, weights and outputs."""
    model = load_model(str(tiny_classifier), "classify", LABELS)
    prepare(model.network, model.plan(preset("q8bert-attention")))
    master = load_model(str(tiny_classifier), "classify", LABELS).network
    seen: dict[str, Tensor] = {}
    for slot in PROJECTIONS:
        model.network.get_submodule(f"layers.1.{slot}").register_forward_hook(
            lambda module, args, output, slot=slot: seen.update({slot: output})
        )
    found = Distillation(model.network, master, only("distill_relations"))(model.network.train(), batch_of())
    assert 0 < found.item() < 0.1
    for slot in PROJECTIONS:
        steps = seen[slot] / model.network.get_submodule(f"layers.1.{slot}").range_scale("output")
        assert torch.allclose(steps, steps.round(), atol=1e-3)
    found.backward()
    weights = {slot: model.network.get_parameter(f"layers.1.{slot}.weight") for slot in PROJECTIONS}
    assert all(weight.grad is not None and weight.grad.any() for weight in weights.values())


def test_the_teacher_may_have_another_shape(tiny_classifier: Path, tmp_path: Path) -> None:
    big = save_tiny(tmp_path / "big", "classify", seed=4)
    names = dict(enumerate(LABELS))
    shape = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 96}
    config = tiny_config(load_tokenizer(big).get_vocab_size(), id2label=names, **shape)
    BertForSequenceClassification(config).save_pretrained(big)
    student, master = pair_of(tiny_classifier, big)
    for heads in (None, 1, 8):
        loss = Distillation(student, master, only("distill_relations", relation_heads=heads))
        assert loss(student, batch_of()).item() > 0
    with pytest.raises(InputError, match="relation_heads is 6, which does not divide the 32 columns of the student's"):
        Distillation(student, master, only("distill_relations", relation_heads=6))
    with pytest.raises(InputError, match="relation_heads is 32, which does not divide the 48 columns of the teacher's"):
        Distillation(student, master, only("distill_relations", relation_heads=32))


def test_the_losses_of_shared_batches_add_up(tiny_classifier: Path, tmp_path: Path) -> None:
    student, master = pair_of(tiny_classifier, save_tiny(tmp_path / "teacher", "classify", seed=1))
    loss, batch = Distillation(student, master, only("distill_relations")), batch_of()
    shares = [Processes(rank, 2).share(batch) for rank in range(2)]
    whole = loss(student, batch).item()
    assert sum(loss(student, part).item() * share for part, share in shares) == pytest.approx(whole, rel=1e-5)


def test_settings_that_say_nothing_are_refused(tiny_classifier: Path) -> None:
    student, master = pair_of(tiny_classifier, tiny_classifier)
    with pytest.raises(InputError, match="relation_heads is 4, but distill_relations is 0"):
        Distillation(student, master, TrainConfig(relation_heads=4))
    with pytest.raises(InputError, match="relation_heads is 0, out of its range"):
        TrainConfig(distill_relations=1.0, relation_heads=0)
