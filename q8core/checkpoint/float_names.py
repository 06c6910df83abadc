"""Maps the tensor names in a float model's file to the names that its family uses.

Differences that can be undone exactly are undone: wrappers that training tools put around modules, an extra or missing
prefix, and LayerNorm's parameter names from before 2019. All other names are kept, for the layout check to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from q8core.errors import CheckpointError
from q8core.model.families import Family

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules that DataParallel, torch.compile, FSDP and activation checkpointing put around another, at any depth."""
_OUTER = (*_WRAPPERS, "model", "base_model", "auto_model")
"""Prefixes of a whole model: attributes of Lightning modules, PEFT models and sentence-transformers."""
_OLD_NORM_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_ADAPTERS = (
    "adapter", "adapters", "adapter_down", "base_layer", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B",
    "lora_magnitude_vector", "ia3_l", "modules_to_save", "original_module", "prefix_tuning", "prompt_embeddings",
)  # fmt: skip
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Buffers that earlier versions of transformers stored."""


@dataclass(frozen=True)
class FloatNames:
    """The tensors of a file by the model's names.

    Attributes:
        stored: the model's name -> the file's, without tensors that no model uses.
        changes: the differences that were undone, one phrase each.
    """

    stored: Mapping[str, str]
    changes: tuple[str, ...]


def read_names(names: Iterable[str], family: Family, where: str) -> FloatNames:
    """Find the model's name of every tensor in a file.

    Args:
        names: the names in the file.
        family: the model's family.
        where: the file's name in error messages.

    Raises:
        CheckpointError: the file holds adapters, or two tensors map to the same name.
    """
    names = sorted(names)
    _refuse_adapters(names, where)
    stored: dict[str, str] = {}
    prefixes: set[str] = set()
    old_norms = False
    for name in names:
        canonical, prefix = _undone(name, family)
        if canonical in stored:
            raise CheckpointError(
                f"{where}: {stored[canonical]} and {name} are both {canonical}; a file must hold one model once"
            )
        old_norms |= canonical != name and name.endswith(tuple(_OLD_NORM_NAMES))
        if prefix is not None:
            prefixes.add(prefix)
        stored[canonical] = name
    unused = (*(f"{family.prefix}.{buffer}" for buffer in _BUFFERS), *family.unused)
    used = {name: found for name, found in stored.items() if not name.startswith(unused)}
    return FloatNames(used, tuple(_told(prefixes, used, f"{family.prefix}.", old_norms=old_norms)))


def _undone(name: str, family: Family) -> tuple[str, str | None]:
    """Return the model's name, and the prefix if it differs from the model's own."""
    parts = name.split(".")
    roots = [i for i, part in enumerate(parts) if part in (*family.encoder_roots, *family.head_roots)]
    if not roots:
        return name, None
    before, core = parts[: roots[0]], [part for part in parts[roots[0] :] if part not in _WRAPPERS]
    if any(part not in (*_OUTER, family.prefix) and not part.isdigit() for part in before):
        return name, None
    canonical = ".".join(core)
    for old, new in _OLD_NORM_NAMES.items():
        if canonical.endswith(old):
            canonical = canonical.removesuffix(old) + new
    of_head = core[0] in family.head_roots
    expected = [] if of_head else [family.prefix]
    inner = len(core) < len(parts) - roots[0]
    prefix = None if before == expected and not inner else _shown_prefix(before, parts[roots[0] :])
    return ".".join((*expected, canonical)), prefix


def _shown_prefix(before: Sequence[str], rest: Sequence[str]) -> str:
    """Return the prefix for the note, including wrappers further inside."""
    return ".".join((*before, *(part for part in rest if part in _WRAPPERS)))


def _told(prefixes: set[str], stored: Mapping[str, str], encoder: str, *, old_norms: bool) -> Iterable[str]:
    """Yield what was undone; the bare names of an encoder saved alone do not count."""
    bare = all(name.startswith(encoder) for name in stored)
    odd = sorted(prefix for prefix in prefixes if prefix or not bare)
    if odd:
        shown = ", ".join(repr(f"{prefix}.") if prefix else "no prefix" for prefix in odd)
        yield f"names with {shown} are read as the model's own"
    if old_norms:
        yield "LayerNorm's gamma and beta are read as weight and bias"


def _refuse_adapters(names: Sequence[str], where: str) -> None:
    found = [name for name in names if any(part in _ADAPTERS for part in name.split("."))]
    if found:
        raise CheckpointError(
            f"{where} holds adapters ({shown_names(found)}), which are not supported; merge them into the weights "
            "first (PEFT: `model.merge_and_unload().save_pretrained(folder)`)"
        )


def shown_names(names: Sequence[str]) -> str:
    """Return the first names of a list and, if there are more, their number."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} in all)"
