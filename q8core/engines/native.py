"""The int8 forward pass as one call into the native library: quantized weights in, logits out.

Computes what `int8.py` does with torch's kernels: the integer sums are the same to the bit; float steps (GELU, softmax,
layer norms, attention's weighted sums) round in another order, so now and then an activation lands on the neighbouring
step of its grid. Every variant of the library gives the same bits as the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from q8core.checkpoint.layout import head_path
from q8core.engines.fp32 import load_norm
from q8core.engines.linear_tensors import LinearTensors, take_linear
from q8core.engines.packed_file import PackedModel, Store, packed_key, place
from q8core.engines.packing import TokenBatch
from q8core.engines.residence import Residence
from q8core.engines.shape import ModelShape
from q8core.engines.source import TensorSource
from q8core.errors import EngineError
from q8core.native import load_library, structs, variants
from q8core.quant.arithmetic import dequantize_bias, integer_limits, rescale_factor
from q8core.quant.products import score_factor
from q8core.tasks.task import TaskKind

_LANES, _PANEL, _DEPTH = 16, 32, 64
_SIGNED = 128
"""The zero point of symmetric activations."""
_ROUND = 1.5 * 2**23
"""Added to a small float32 it rounds it, and leaves the integer in the lowest bits."""


@dataclass(frozen=True)
class NativeLinear:
    """A static int8 layer in the library's layout.

    Attributes:
        weight: uint8 (out rounded up to 32, in rounded up to 64).
        comp: int32 (2, ...), what takes the activations' zero point out of the sums, and where they are signed.
        r, bias: float32; all of `weight`'s rows.
        view: the structure that points to them.
    """

    weight: Tensor
    comp: Tensor
    r: Tensor
    bias: Tensor
    view: structs.Linear

    @classmethod
    def pack(cls, tensors: LinearTensors) -> NativeLinear:
        """Copy a layer into the library's layout.

        Raises:
            EngineError: if it is not static int8.
        """
        if tensors.weight_scale is None or tensors.input_scale is None:
            raise EngineError(f"the native kernel computes static int8 layers; found a {tensors.kind} one")
        out, columns = tensors.weight.shape
        rows, depth = _up(out, _PANEL), _up(columns, _DEPTH)
        weight, comp = torch.zeros(rows, depth, dtype=torch.uint8), torch.zeros(2, rows, dtype=torch.int32)
        source = tensors.weight.contiguous()
        zero_point = _SIGNED if tensors.zero_point is None else tensors.zero_point
        load_library().q8_pack(
            source.data_ptr(), out, columns, zero_point, weight.data_ptr(), comp[0].data_ptr(), comp[1].data_ptr()
        )
        r = rescale_factor(tensors.input_scale, tensors.weight_scale).expand(out)
        bias = dequantize_bias(tensors.bias, tensors.input_scale, tensors.weight_scale)
        r, bias = (F.pad(each, (0, rows - out)).contiguous() for each in (r, bias))
        view = structs.Linear(
            *(each.data_ptr() for each in (weight, comp[0], comp[1], r, bias)),
            structs.Grid(
                float(tensors.input_scale.reciprocal()), *integer_limits(tensors.zero_point), _ROUND + zero_point
            ),
            out,
            rows,
            depth // _DEPTH,
        )
        return cls(weight, comp, r, bias, view)


class Workspace:
    """Memory for activations, reused from batch to batch; it grows to what the largest needs."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return len(self._memory)

    def of(self, nbytes: int) -> Tensor:
        """Return at least `nbytes` bytes of whatever was there."""
        if nbytes > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old one goes first: never both
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory


@dataclass(frozen=True)
class NativeModel:
    """A model in the library's layout, ready to run.

    Attributes:
        shape: its sizes.
        labels: columns of the logits.
        variant: the instruction set in use, and the library's address of it.
        packed: what the library reads.
        functions: the library's functions that size the workspace and run.
    """

    shape: ModelShape
    labels: int
    variant: tuple[str, int]
    packed: PackedModel
    functions: tuple[str, str] = ("q8_workspace_bytes", "q8_forward")
    workspace: Workspace = field(default_factory=lambda: Workspace())

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return float32 logits: (B, labels), or (T, 2) for question answering."""
        lengths = torch.tensor(batch.lengths, dtype=torch.int32)
        ids, types = batch.input_ids.contiguous(), batch.token_type_ids.contiguous()
        what = structs.Batch(batch.tokens, len(batch.lengths), ids.data_ptr(), types.data_ptr(), lengths.data_ptr())
        size_of, forward = (getattr(load_library(), name) for name in self.functions)
        threads, view = torch.get_num_threads(), self.packed.view
        memory = self.workspace.of(size_of(view, what, threads))
        logits = torch.empty(len(batch.lengths) if view.classify else batch.tokens, self.labels)
        forward(self.variant[1], view, what, memory.data_ptr(), logits.data_ptr(), threads)
        return logits

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of the workspace, which has grown to what the largest batch needed."""
        return self.workspace.nbytes

    @property
    def residence(self) -> Residence:
        """Where the weights are."""
        return self.packed.residence


def load_native(
    shape: ModelShape, task: TaskKind, source: TensorSource, labels: int, variant: str | None = None
) -> NativeModel:
    """Map the packed tensors of an int8 checkpoint, or pack them, one after the other.

    Args:
        shape: the model's sizes.
        task: its task.
        source: its tensors.
        labels: outputs of the head.
        variant: amx, avx512_vnni, avx2 or portable; None for the best that this CPU runs.

    Raises:
        CheckpointError: if a tensor is missing or does not fit.
        EngineError: if the library is missing, cannot run here, or does not compute this scheme.
    """
    usable = variants()
    name = variant or next(iter(usable))
    if name not in usable:
        raise EngineError(f"the variant {name!r} cannot run here; usable: {', '.join(usable)}")
    refusal = refused(shape, task, source)
    if refusal is not None:
        raise EngineError(refusal)
    key = packed_key(source.sha256, task, shape, labels) if source.sha256 else None
    packed = place(key, lambda store: _pack_model(shape, task, source, labels, store))
    return NativeModel(shape, labels, (name, usable[name]), packed)


def _pack_model(shape: ModelShape, task: TaskKind, source: TensorSource, labels: int, store: Store) -> structs.Model:
    """Pack every tensor of the source into the store."""
    loader = Loader(source, shape, store)
    view = structs.Model(shape.hidden, shape.heads, shape.inner, shape.layers, shape.norm_epsilon, task == "classify")
    view.words = loader.table("word_embeddings", shape.vocabulary)
    view.positions = loader.table("position_embeddings", shape.positions)
    view.types = loader.table("token_type_embeddings", shape.token_types)
    view.embedding_norm = loader.norm("bert.embeddings.LayerNorm")
    layers = (structs.Layer * shape.layers)(*(loader.layer(number) for number in range(shape.layers)))
    view.layer = layers
    if task == "classify":
        view.pooler = loader.linear("bert.pooler.dense", shape.hidden, shape.hidden)
    view.head = loader.linear(head_path(task), labels, shape.hidden)
    source.finish()
    return view


def refused(shape: ModelShape, task: TaskKind, source: TensorSource) -> str | None:
    """Return why the library does not compute this scheme, or None if it does."""
    paths = [f"bert.encoder.layer.{n}.{leaf}" for n in range(shape.layers) for leaf in _LINEARS]
    paths += ["bert.pooler.dense"] if task == "classify" else []
    for path in (*paths, head_path(task)):
        if f"{path}.input_scale" not in source:
            return f"the native kernel computes static int8 layers; {path} has no input_scale"
        if path.endswith((".query", ".key")) and f"{path}.output_scale" not in source:
            return f"the native kernel computes requantized queries and keys; {path} has no output_scale"
    return None


_ATTENTION = ("query", "key", "value")
_LINEARS = (
    *(f"attention.self.{leaf}" for leaf in _ATTENTION),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


class Loader:
    """Takes tensors from a source, packs them, and hands what the structures point to to a store."""

    def __init__(self, source: TensorSource, shape: ModelShape, store: Store) -> None:
        self.source, self.shape, self.store, self.keep = source, shape, store, store.keep

    def table(self, name: str, rows: int) -> structs.Table:
        """Load an embedding table."""
        path = f"bert.embeddings.{name}"
        weight = self.source.take(f"{path}.weight", (rows, self.shape.hidden), dtypes=(torch.int8, torch.float32))
        if weight.dtype == torch.float32:
            return structs.Table(None, self.store.keep_copy(weight), None, 0)
        scale = self.source.scale(f"{path}.weight_scale", (1,), (rows,))
        return structs.Table(self.store.keep_copy(weight), None, self.store.keep_copy(scale), scale.numel() > 1)

    def norm(self, path: str) -> structs.Norm:
        """Load a layer norm, padded to whole vectors."""
        loaded = load_norm(self.source, path, self.shape)
        padding = (0, _up(self.shape.hidden, _LANES) - self.shape.hidden)
        return structs.Norm(*(self.keep(F.pad(each, padding)) for each in (loaded.weight, loaded.bias)))

    def linear(self, path: str, out: int, columns: int) -> structs.Linear:
        """Load and pack a linear layer."""
        return self._pack(take_linear(self.source, path, out, columns))

    def layer(self, number: int) -> structs.Layer:
        """Load an encoder layer."""
        path, h, f = f"bert.encoder.layer.{number}", self.shape.hidden, self.shape.inner
        layer, scales = structs.Layer(), dict[str, Tensor]()
        for name in _ATTENTION:
            tensors = take_linear(self.source, f"{path}.attention.self.{name}", h, h, requantized=True)
            setattr(layer, name, self._pack(tensors))
            if tensors.output_scale is not None:
                scales[name] = tensors.output_scale
                setattr(layer, f"{name}_inverse", float(tensors.output_scale.reciprocal()))
        layer.score_scale = score_factor(self.shape.head_size, scales["query"], scales["key"])
        if "value" in scales:  # else its zeros say that the products of probabilities and values are those of floats
            layer.value_scale = float(scales["value"])
        layer.output = self.linear(f"{path}.attention.output.dense", h, h)
        layer.output_norm = self.norm(f"{path}.attention.output.LayerNorm")
        layer.inner = self.linear(f"{path}.intermediate.dense", f, h)
        layer.outer = self.linear(f"{path}.output.dense", h, f)
        layer.final_norm = self.norm(f"{path}.output.LayerNorm")
        return layer

    def _pack(self, tensors: LinearTensors) -> structs.Linear:
        packed = NativeLinear.pack(tensors)
        view = packed.view
        view.w, view.comp = self.keep(packed.weight), self.keep(packed.comp)
        view.signed_comp = view.comp + packed.comp[0].nbytes
        view.r, view.bias = self.keep(packed.r), self.keep(packed.bias)
        return view


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
