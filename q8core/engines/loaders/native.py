"""The int8 forward pass as one call into the native library: quantized weights in, logits out.

Computes the same as `int8.py` does with torch's kernels. The integer sums are identical. Float steps (GELU, softmax,
layer norms, attention's weighted sums) round in another order, so occasionally an activation lands on the neighbouring
step of its grid. All variants of the library give the same bits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from q8core.arrays import Array, Logits, address, empty
from q8core.engines.loaders.native_linear import (
    DEPTH,
    LANES,
    NativeLinear,
    padded,
    reciprocal,
    rounded_up,
    without_code,
)
from q8core.engines.loaders.team_size import TeamSize
from q8core.engines.memory.footprint import footprint
from q8core.engines.memory.packed_file import PackedModel, Store, packed_key, place
from q8core.engines.memory.residence import Residence
from q8core.engines.packing import TokenBatch
from q8core.engines.tensors.site_tensors import LinearTensors, take_linear, take_norm, take_relative_bias, take_table
from q8core.engines.tensors.source import TensorSource
from q8core.errors import EngineError
from q8core.model.head import Reads
from q8core.model.sites import EMBEDDING_PROJECTION, HEAD_DENSE, HEAD_OUTPUT, PRODUCTS, PROJECTIONS, layer_path
from q8core.model.spec import EncoderSpec
from q8core.native import load_library, runtime_threads, structs, variants
from q8core.quant.codes import Codebook, is_packed
from q8core.quant.ops.stored import score_factor
from q8core.quant.plan import Plan, SitePlan

SMALL = 16_000_000
"""Up to so many multiply-adds a pass runs on one thread. Others have to be woken, and waited for 7 times a layer. On 2
CPUs of an EPYC with AVX2 a second one costs more than it gains up to 2 million in passes that follow each other, and up
to 13 million after a pause, when it sleeps (about 1 ms). CPUs with AVX-512 do more in that time."""


class Workspace:
    """Memory for activations, reused by all batches; it grows to the size that the largest batch needs."""

    def __init__(self) -> None:
        self._memory = empty(0, np.uint8)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return len(self._memory)

    def of(self, nbytes: int) -> NDArray[np.uint8]:
        """Return at least `nbytes` bytes, uninitialized."""
        if nbytes > len(self._memory):
            self._memory = empty(0, np.uint8)  # free the old one first: never hold both
            self._memory = empty(nbytes, np.uint8)
        return self._memory


@dataclass(frozen=True)
class NativeModel:
    """A model in the library's layout, ready to run.

    Attributes:
        spec: the encoder's sizes.
        outputs: number of columns of the logits.
        variant: the instruction set in use, and the variant's address in the library.
        packed: the tensors that the library reads.
        functions: the library's functions that compute the workspace's size and run the model.
        workspace: its memory.
        team_size: how many threads a batch that is not small gets.
    """

    spec: EncoderSpec
    outputs: int
    variant: tuple[str, int]
    packed: PackedModel
    functions: tuple[str, str] = ("q8_workspace_bytes", "q8_forward")
    workspace: Workspace = field(default_factory=lambda: Workspace())
    team_size: TeamSize = field(default_factory=TeamSize)

    @property
    def own_threads(self) -> int:
        """OpenMP's setting for the calling thread, which is torch's setting if torch is imported."""
        return runtime_threads()

    def logits(self, batch: TokenBatch, threads: int | None = None) -> Logits:
        """Return logits: (B, outputs) where the head reads first tokens, else (T, outputs).

        Args:
            batch: a batch that the engine has checked.
            threads: the most CPU threads to use: small batches get one, and large ones those that `team_size` chooses;
                None for `own_threads`.
        """
        most = threads or self.own_threads
        if most == 1 or batch.tokens * self.spec.multiply_adds <= SMALL:
            return self.compute(batch, 1)[0]
        chosen, begin = self.team_size.choose(most), time.monotonic()
        logits, share = self.compute(batch, chosen)
        self.team_size.observe(chosen, share, time.monotonic() - begin)
        return logits

    def compute(self, batch: TokenBatch, threads: int) -> tuple[Logits, float]:
        """Compute with so many threads.

        Returns:
            The logits, the same bits with any number, and for which share of the time the thread had a CPU that had one
            for the least.
        """
        lengths = np.array(batch.lengths, np.int32)
        ids, types = np.ascontiguousarray(batch.input_ids), np.ascontiguousarray(batch.token_type_ids)
        what = structs.Batch(batch.tokens, len(batch.lengths), address(ids), address(types), address(lengths))
        size_of, forward = (getattr(load_library(), name) for name in self.functions)
        view = self.packed.view
        memory = self.workspace.of(size_of(view, what, threads))
        rows = len(batch.lengths) if view.head_reads_first else batch.tokens
        logits = np.empty((rows, self.outputs), np.float32)
        share = forward(self.variant[1], view, what, address(memory), address(logits), threads)
        return logits, share

    def footprint(self) -> tuple[int, int]:
        """Return the resident bytes of (matrices and tables, all other arrays)."""
        return footprint(self.packed.tensors)

    def workspace_bytes(self, tokens: int) -> int:
        """Return the bytes of the workspace, which has grown to the size that the largest batch needed."""
        return self.workspace.nbytes

    @property
    def reads(self) -> Reads:
        """Which tokens the head reads."""
        return "first" if self.packed.view.head_reads_first else "every"

    @property
    def residence(self) -> Residence:
        """Where the weights are."""
        return self.packed.residence


def load_native(plan: Plan, source: TensorSource, variant: str | None = None) -> NativeModel:
    """Map the packed tensors of a quantized checkpoint, or pack them, one after the other.

    Args:
        plan: the model's plan.
        source: the model's tensors.
        variant: amx, avx512_vnni, avx_vnni, avx2 or portable; None for the best that this CPU runs.

    Raises:
        CheckpointError: if a tensor is missing, or is not what the plan says.
        EngineError: if the library is missing, cannot run here, or does not compute this plan.
    """
    usable = variants()
    name = variant or next(iter(usable))
    if name not in usable:
        raise EngineError(f"the variant {name!r} cannot run here; usable: {', '.join(usable)}")
    refusal = refused(plan)
    if refusal is not None:
        raise EngineError(refusal)
    key = packed_key(source.sha256, plan, name) if source.sha256 else None
    packed = place(key, lambda store: _pack_model(plan, Loader(source, plan, store, usable[name])))
    return NativeModel(plan.spec, plan.head.outputs, (name, usable[name]), packed)


def _pack_model(plan: Plan, loader: Loader) -> structs.Model:
    """Pack every tensor of the loader's source into its store."""
    spec = plan.spec
    view = structs.Model(spec.hidden, spec.heads, spec.inner, spec.layers, spec.attention, spec.norm_epsilon)
    view.head_reads_first = plan.head.reads == "first"
    loader.embeddings(view)
    layers = (structs.Layer * spec.layers)(*(loader.layer(number) for number in range(spec.layers)))
    view.layer = layers
    if plan.head.dense:
        view.head_activation = structs.ACTIVATIONS[plan.head.dense]
        view.head_dense = loader.linear(HEAD_DENSE)
    view.head = loader.linear(HEAD_OUTPUT)
    loader.source.finish()
    return view


def refused(plan: Plan) -> str | None:
    """Return why the library does not compute this plan, or None if it does."""
    for path, site in plan.sites.items():
        if site.site.kind != "linear":
            continue
        if site.kind == "float":
            return f"the native kernel computes int8 layers; {path} is {site.kind}"
        if _lacks_zero(site) and site.site.shape[-1] % DEPTH:
            return f"{path}: {without_code(site.site.shape[-1])}"
    for number in range(plan.spec.layers):
        query, key = (plan.of_layer(number, slot) for slot in ("query", "key"))
        if (query.output is None) != (key.output is None):
            plain = query if query.output is None else key
            return (
                "the native kernel computes queries and keys of which both or neither are quantized; "
                f"only the output of {plain.path} is in float"
            )
    return None


def _lacks_zero(site: SitePlan) -> bool:
    """Return whether no code of the weight means 0, as with one symmetric bit, or need not, as with a split one."""
    weight = site.weight
    if weight is not None and weight.grid == "split":
        return True
    return weight is not None and is_packed(weight.bits) and 0 not in Codebook.of(weight.bits, weight.grid).levels


class Loader:
    """Takes tensors from a source and packs them for a variant; a store keeps what the structures point to."""

    def __init__(self, source: TensorSource, plan: Plan, store: Store, variant: int) -> None:
        self.source, self.plan, self.store, self.keep = source, plan, store, store.keep
        self.variant = variant

    def embeddings(self, view: structs.Model | structs.FloatModel) -> None:
        """Load the tables, their norm and, if there is one, the projection after it."""
        spec = self.plan.spec
        view.words = self.table("word_embeddings")
        view.positions = self.table("position_embeddings", spec.first_position)
        if spec.token_types:
            view.types = self.table("token_type_embeddings")
        view.embedding_norm = self.norm("embedding_norm")
        view.embedding = spec.table_columns
        if spec.embedding:
            view.projection = self.projection()
        bias = take_relative_bias(self.source, self.plan)
        if bias is not None:
            view.relative_bias = structs.RelativeBias(self.keep(bias), spec.positions)

    def projection(self) -> structs.Linear | structs.FloatLinear:
        """Load the projection from the tables' width to the hidden size."""
        return self.linear(EMBEDDING_PROJECTION)

    def table(self, path: str, first: int = 0) -> structs.Table:
        """Load an embedding table from its row `first` on."""
        tensors, keep = take_table(self.source, self.plan.sites[path]).behind(first), self.store.keep_copy
        if tensors.scale is None:
            return structs.Table(None, keep(tensors.stored), None, 0)
        view = structs.Table(keep(tensors.stored), None, keep(tensors.scale), tensors.scale.size > 1, 8)
        if tensors.codebook is not None:
            book = tensors.codebook
            view.bits, view.levels = book.bits, keep(book.levels)
            view.zeros = None if book.zero_points is None else keep(book.zero_points)
        return view

    def norm(self, path: str) -> structs.Norm:
        """Load a layer norm, padded to whole vectors."""
        parts = take_norm(self.source, self.plan.sites[path])
        return structs.Norm(*(self.keep(padded(each, rounded_up(len(each), LANES))) for each in parts))

    def linear(self, path: str) -> structs.Linear:
        """Load and pack a linear layer."""
        return self._pack(take_linear(self.source, self.plan.sites[path]))

    def layer(self, number: int) -> structs.Layer:
        """Load an encoder layer."""
        layer, scales, inverses = structs.Layer(), dict[str, float](), dict[bytes, int]()
        for slot in PROJECTIONS:
            tensors = take_linear(self.source, self.plan.of_layer(number, slot))
            setattr(layer, slot, self._pack(tensors, inverses))
            if tensors.output_scale is not None:
                scales[slot] = tensors.output_scale.item()
                setattr(layer, f"{slot}_inverse", reciprocal(tensors.output_scale).item())
        layer.score_scale = score_factor(self.plan.spec.head_size, scales.get("query", 1.0), scales.get("key", 1.0))
        if self.plan.of_layer(number, PRODUCTS).arithmetic != "float":
            layer.value_scale = scales["value"]
        layer.output = self.linear(layer_path(number, "attention_output"))
        layer.output_norm = self.norm(layer_path(number, "attention_norm"))
        layer.inner = self.linear(layer_path(number, "ffn_in"))
        layer.outer = self.linear(layer_path(number, "ffn_out"))
        layer.final_norm = self.norm(layer_path(number, "ffn_norm"))
        return layer

    def _pack(self, tensors: LinearTensors[Array], inverses: dict[bytes, int] | None = None) -> structs.Linear:
        """Pack a layer; `inverses` holds the grid addresses of earlier layers that may read the same input.

        The library quantizes an input once for all layers whose grids have the same address.
        """
        packed = NativeLinear.pack(tensors, self.variant)
        view, known = packed.view, {} if inverses is None else inverses
        if packed.inverse is not None:
            content = packed.inverse.tobytes()
            if content not in known:
                known[content] = self.keep(packed.inverse)
            view.input.inverse = known[content]
        view.w, view.comp = self.keep(packed.weight), self.keep(packed.comp)
        if packed.order is not None:
            view.order = self.keep(packed.order)
        view.r, view.bias = self.keep(packed.r), self.keep(packed.bias)
        if packed.codes is not None:
            points = packed.codes.zero_points
            view.levels, view.zeros = self.keep(packed.codes.levels), None if points is None else self.keep(points)
        return view
