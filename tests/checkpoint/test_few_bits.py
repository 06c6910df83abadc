"""Damaged checkpoints with weights of few bits: each is refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from q8core.checkpoint import Checkpoint
from q8core.engines import load_engine, self_test
from q8core.errors import CheckpointError
from q8core.quant.quantizer import Quantizer
from tests.checkpoint.test_checkpoint import edit_tensors
from tests.training.test_qat import quantize_tiny

Tensors = dict[str, torch.Tensor]
SCHEMES = {
    "asymmetric": 'base = "qbert-3"\noverrides."layers.*".weight = { granularity = "group", groups = 8 }\n',
    "symmetric": 'base = "kdlsq-4"\n',
    "signs": 'base = "binary"\n',
    "halves": 'base = "binary-split"\n',
    "inputs": 'base = "mkq"\n',
}
SITE = "layers.1.ffn_in"


@pytest.fixture(scope="module")
def folders(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, text in SCHEMES.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / f"{name}.toml").write_text(text)
        found[name] = quantize_tiny(tiny_classifier, folder / "int8", str(folder / f"{name}.toml"), keep_float=False)
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_they_open_and_replay_their_golden_answers(folders: dict[str, Path], name: str) -> None:
    opened = Checkpoint.open(folders[name])
    for backend in ("int8", "fp32"):
        assert self_test(load_engine(opened, backend), opened, tolerance=1e-4).labels_equal
    site = opened.plan.sites[SITE]
    assert site.weight is not None
    assert site.weight != Quantizer(granularity="channel")


def set_to(name: str, value: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[f"{SITE}.{name}"].fill_(value)


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{SITE}.{name}": change(tensors[f"{SITE}.{name}"]).contiguous()})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("asymmetric", replaced("weight", lambda w: w[:, :-1]), r"ffn_in\.weight has shape \(64, 11\)"),
        ("asymmetric", replaced("weight", lambda w: torch.cat([w, w], 1)), r"ffn_in\.weight has shape \(64, 24\)"),
        ("asymmetric", replaced("weight", lambda w: w.char()), r"ffn_in\.weight is I8"),
        ("asymmetric", replaced("weight_levels", lambda v: v - 4), r"weight_levels are \[-4, .*those of 3 bits, asymm"),
        ("asymmetric", replaced("weight_levels", lambda v: v[:4]), r"weight_levels has shape \(4,\)"),
        ("asymmetric", set_to("weight_zero_point", 8), r"weight_zero_point holds a number outside 0 to 7"),
        ("asymmetric", set_to("weight_zero_point", -1), r"weight_zero_point holds a number outside 0 to 7"),
        ("asymmetric", replaced("weight_zero_point", lambda v: v[:4]), r"weight_zero_point has shape \(4,\)"),
        (
            "asymmetric",
            lambda t: t.pop(f"{SITE}.weight_zero_point"),
            r"lacks the tensor layers\.1\.ffn_in\.weight_z",
        ),
        ("asymmetric", replaced("weight_scale", lambda v: v[:1]), r"weight_scale has shape \(1,\)"),
        ("symmetric", set_to("weight", 0), r"ffn_in\.weight holds -8, outside the symmetric range -7\.\.7 of 4 bits"),
        ("symmetric", replaced("weight_levels", lambda v: -v), r"weight_levels are \[8, .*those of 4 bits, symmetric"),
        ("signs", replaced("weight_levels", lambda v: v + 1), r"weight_levels are \[0, 2\]; those of 1 bits"),
        ("signs", replaced("weight", lambda w: w[:, :3]), r"ffn_in\.weight has shape \(64, 3\)"),
        ("halves", set_to("weight_levels", 1), r"weight_levels are \[1, 1, 1, 1\]; those of a split weight are -a, -b"),
        ("halves", replaced("weight_levels", lambda v: v * 17), r"weight_levels are .*with a from 1 to 16 and b from"),
        ("halves", replaced("weight_levels", lambda v: -v), r"weight_levels are .*with a from 1 to 16 and b from"),
        ("signs", set_to("weight_scale", 0), r"weight_scale holds a scale that is not positive"),
    ],
)
def test_damage_is_refused_with_the_reason(
    folders: dict[str, Path], tmp_path: Path, name: str, change: Callable[[Tensors], object], message: str
) -> None:
    copy = Path(shutil.copytree(folders[name], tmp_path / "copy"))
    edit_tensors(copy, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(copy)


@pytest.mark.parametrize("zero_point", [16, 3, 254])
def test_a_zero_point_of_another_width_is_refused(folders: dict[str, Path], tmp_path: Path, zero_point: int) -> None:
    copy = Path(shutil.copytree(folders["inputs"], tmp_path / "copy"))
    edit_tensors(copy, set_to("input_zero_point", zero_point))
    with pytest.raises(CheckpointError, match=rf"ffn_in\.input_zero_point is {zero_point}; .* from 0 to 14"):
        load_engine(Checkpoint.open(copy), "int8")
