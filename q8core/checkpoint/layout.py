"""Which tensors a BERT checkpoint must hold, and in which shapes: derived from its config and scheme."""

from __future__ import annotations

from transformers import BertConfig

from q8core.checkpoint.tensors import TensorFile
from q8core.errors import CheckpointError
from q8core.quant import Scheme, SlotScheme, slot_of
from q8core.tasks.task import TaskKind

Shape = tuple[int, ...]

_POOLER = "bert.pooler.dense"
_HEADS: dict[TaskKind, str] = {"classify": "classifier", "qa": "qa_outputs"}


def head_path(task: TaskKind) -> str:
    """Return the module path of a task's last linear layer."""
    return _HEADS[task]


def linear_shapes(config: BertConfig, task: TaskKind, labels: int) -> dict[str, tuple[int, int]]:
    """Module path of every linear layer -> ``(out, in)``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(config.num_hidden_layers):
        path = f"bert.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            shapes[f"{path}.attention.self.{name}"] = (hidden, hidden)
        shapes[f"{path}.attention.output.dense"] = (hidden, hidden)
        shapes[f"{path}.intermediate.dense"] = (inner, hidden)
        shapes[f"{path}.output.dense"] = (hidden, inner)
    if task == "classify":
        shapes[_POOLER] = (hidden, hidden)
    shapes[head_path(task)] = (labels if task == "classify" else 2, hidden)
    return shapes


def embedding_shapes(config: BertConfig) -> dict[str, tuple[int, int]]:
    """Module path of every embedding table -> ``(rows, hidden)``."""
    hidden = config.hidden_size
    return {
        "bert.embeddings.word_embeddings": (config.vocab_size, hidden),
        "bert.embeddings.position_embeddings": (config.max_position_embeddings, hidden),
        "bert.embeddings.token_type_embeddings": (config.type_vocab_size, hidden),
    }


def norm_names(config: BertConfig) -> list[str]:
    """Module path of every LayerNorm."""
    names = ["bert.embeddings.LayerNorm"]
    for layer in range(config.num_hidden_layers):
        path = f"bert.encoder.layer.{layer}"
        names += [f"{path}.attention.output.LayerNorm", f"{path}.output.LayerNorm"]
    return names


def float_shapes(config: BertConfig, task: TaskKind, labels: int) -> dict[str, Shape]:
    """Every tensor of the float model -> shape."""
    shapes: dict[str, Shape] = {}
    for path, shape in linear_shapes(config, task, labels).items():
        shapes[f"{path}.weight"], shapes[f"{path}.bias"] = shape, (shape[0],)
    shapes.update({f"{path}.weight": shape for path, shape in embedding_shapes(config).items()})
    for path in norm_names(config):
        shapes[f"{path}.weight"] = shapes[f"{path}.bias"] = (config.hidden_size,)
    return shapes


def pooler_shapes(config: BertConfig) -> dict[str, Shape]:
    """Every tensor of the pooler -> shape: part of a classifier's head, and of a pretrained encoder as a rule."""
    return {f"{_POOLER}.weight": (config.hidden_size, config.hidden_size), f"{_POOLER}.bias": (config.hidden_size,)}


def check_int8_layout(file: TensorFile, config: BertConfig, task: TaskKind, labels: int, scheme: Scheme) -> None:
    """Every tensor of an int8 checkpoint there, in its shape and type, and none besides.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown, of another shape or type, or at odds with
            the scheme.
        SchemeError: if the scheme does not fit together in a layer.
    """
    seen: set[str] = set()

    def expect(name: str, shapes: Shape | tuple[Shape, ...], dtypes: tuple[str, ...]) -> None:
        _expect(file, name, shapes, dtypes)
        seen.add(name)

    for path, (rows, columns) in embedding_shapes(config).items():
        expect(f"{path}.weight", (rows, columns), ("I8", "F32"))
        if file.dtype(f"{path}.weight") == "I8":
            expect(f"{path}.weight_scale", ((1,), (rows,)), ("F32",))
    for path in norm_names(config):
        for part in ("weight", "bias"):
            expect(f"{path}.{part}", (config.hidden_size,), ("F32",))
    for path, (out, columns) in linear_shapes(config, task, labels).items():
        requantized = _requantized(scheme, path)
        expect(f"{path}.weight", (out, columns), ("I8",) if requantized else ("I8", "F32"))
        if file.dtype(f"{path}.weight") == "F32":
            expect(f"{path}.bias", (out,), ("F32",))
            continue
        expect(f"{path}.weight_scale", ((1,), (out,)), ("F32",))
        static = f"{path}.input_scale" in file
        expect(f"{path}.bias", (out,), ("I32",) if static else ("F32",))
        if static:
            expect(f"{path}.input_scale", (1,), ("F32",))
        if _slot(scheme, path).input_grid == "asymmetric" and static:
            expect(f"{path}.input_zero_point", (1,), ("I32",))
        if requantized:
            expect(f"{path}.output_scale", (1,), ("F32",))
        elif f"{path}.output_scale" in file:
            raise CheckpointError(
                f"{file.path} holds {path}.output_scale, which its scheme {scheme.name} does not have"
            )
    for layer in range(config.num_hidden_layers):
        scheme.quantizes_products(f"bert.encoder.layer.{layer}.attention.self")
    unknown = sorted(set(file) - seen)
    if unknown:
        raise CheckpointError(f"{file.path} holds tensors that no part of the model uses: {', '.join(unknown[:5])}")


def _slot(scheme: Scheme, path: str) -> SlotScheme:
    return scheme.resolve(slot_of(path), path)


def _requantized(scheme: Scheme, path: str) -> bool:
    slot = _slot(scheme, path)
    return slot.enabled and slot.requantize_output


def _expect(file: TensorFile, name: str, shapes: Shape | tuple[Shape, ...], dtypes: tuple[str, ...]) -> None:
    if name not in file:
        raise CheckpointError(f"{file.path} lacks the tensor {name}")
    allowed = shapes if shapes and isinstance(shapes[0], tuple) else (shapes,)
    if file.shape(name) not in allowed:
        wanted = " or ".join(str(shape) for shape in allowed)
        raise CheckpointError(f"{file.path}: {name} has shape {file.shape(name)}, the config needs {wanted}")
    if file.dtype(name) not in dtypes:
        raise CheckpointError(f"{file.path}: {name} is {file.dtype(name)}; allowed: {', '.join(dtypes)}")
