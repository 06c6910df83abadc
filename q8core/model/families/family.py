"""A family: how its config.json describes an encoder, and the names of the sites in its files.

Only Hugging Face's files use a family's own names; everything else uses those of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from q8core.model.dropout import ENCODER_PLACES, DropoutPlace, DropoutRates
from q8core.model.head import Activation, HeadSpec, TaskKind
from q8core.model.sites import HEAD_DENSE, HEAD_OUTPUT, sites
from q8core.model.spec import EncoderSpec

Values = Mapping[str, Any]
"""A config.json, completed with the family's defaults."""


def buffers(prefix: str) -> tuple[str, str]:
    """Return the names of buffers that older versions of transformers stored, and no model reads any more."""
    return f"{prefix}.embeddings.position_ids", f"{prefix}.embeddings.token_type_ids"


@dataclass(frozen=True)
class HeadNames:
    """A task's head in a family's files.

    Attributes:
        architecture: transformers' class, as ``architectures`` in config.json names it.
        output: the module of the last linear.
        dense: the module of the layer before it, if there is one.
        activation: the activation after that layer.
        dropout: the dropout points of the head.
    """

    architecture: str
    output: str
    dense: str | None = None
    activation: Activation | None = None
    dropout: tuple[DropoutPlace, ...] = ()

    @property
    def modules(self) -> Mapping[str, str]:
        """Site -> module."""
        return {HEAD_OUTPUT: self.output} | ({} if self.dense is None else {HEAD_DENSE: self.dense})


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        model_type: its name in config.json.
        tokenizer: transformers' tokenizer class for a folder that names none.
        prefix: the module of the encoder in a model with a head, without the dot.
        defaults: transformers' defaults for keys that a config.json may leave out.
        sizes: keys of whole numbers in config.json that must be at least 1.
        fixed: keys with only one supported value, such as the activation.
        spec: makes the encoder's description from a config's values.
        modules: slot -> module below the prefix; ``{layer}`` stands for a layer's number.
        heads: the head of each task.
        unused: prefixes of the names of tensors that files may have and no task reads.
        other_heads: classes of transformers whose heads no task reads, and the prefix of their tensors' names.
        dropout: the dropout points of the encoder.
        heads_key: the key of the number of attention heads in config.json.
        inner_key: that of the feed-forward neurons.
    """

    model_type: str
    tokenizer: str
    prefix: str
    defaults: Values
    sizes: tuple[str, ...]
    fixed: Values
    spec: Callable[[Values], EncoderSpec]
    modules: Mapping[str, str]
    heads: Mapping[TaskKind, HeadNames]
    unused: tuple[str, ...] = ()
    other_heads: Mapping[str, str] = field(default_factory=dict[str, str])
    dropout: tuple[DropoutPlace, ...] = ENCODER_PLACES
    heads_key: str = "num_attention_heads"
    inner_key: str = "intermediate_size"

    @property
    def encoder_roots(self) -> frozenset[str]:
        """The first parts of modules below the prefix, and those of an encoder's own pooler."""
        return frozenset(module.split(".")[0] for module in self.modules.values()) | {"pooler"}

    @property
    def head_roots(self) -> frozenset[str]:
        """The first parts of modules outside the encoder: the tasks' heads, and heads that no task reads."""
        modules = [module for names in self.heads.values() for module in names.modules.values()]
        every = (*modules, *self.unused, *self.other_heads.values())
        return frozenset(module.split(".")[0] for module in every) - {self.prefix}

    @property
    def kinds(self) -> Mapping[str, TaskKind]:
        """Class of transformers -> task."""
        return {names.architecture: kind for kind, names in self.heads.items()}

    def head(self, kind: TaskKind, labels: int) -> HeadSpec:
        """Return the head of a task: a classifier has one output per label, question answering has two."""
        names = self.heads[kind]
        if kind == "qa":
            return HeadSpec("every", 2, names.activation)
        return HeadSpec("first", labels, names.activation)

    def dropout_rates(self, kind: TaskKind | None, rate: float) -> DropoutRates:
        """Return this rate at all dropout points of the family, in the encoder and a task's head."""
        return DropoutRates.alike((*self.dropout, *(self.heads[kind].dropout if kind else ())), rate)

    def module(self, slot: str, layer: int | None = None) -> str:
        """Return the name in files of the module of an encoder's site."""
        return f"{self.prefix}.{self.modules[slot].format(layer=layer)}"

    def site_modules(self, spec: EncoderSpec, kind: TaskKind | None) -> dict[str, str]:
        """Return site -> module in files, for all sites with tensors of the encoder and a task's head."""
        found: dict[str, str] = {}
        for site in sites(spec, None):
            if site.kind != "products":
                layer = int(site.path.split(".")[1]) if site.path.startswith("layers.") else None
                found[site.path] = self.module(site.slot, layer)
        return found if kind is None else {**found, **self.heads[kind].modules}
