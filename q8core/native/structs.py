"""The structures of ``src/model.h`` and ``src/float_model.h``, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p

from q8core.model.head import Activation

ACTIVATIONS: dict[Activation | None, int] = {None: 0, "tanh": 1, "relu": 2, "gelu": 3}
"""The values of `head_activation`."""


class Grid(ctypes.Structure):
    """How floats become unsigned bytes."""

    _fields_ = (("inverse", c_void_p), ("low", c_float), ("high", c_float), ("shift", c_float))


class Linear(ctypes.Structure):
    """An int8 linear layer, or one with weights of fewer bits."""

    _fields_ = (
        ("w", c_void_p),
        ("order", c_void_p),
        ("comp", c_void_p),
        ("r", c_void_p),
        ("bias", c_void_p),
        ("input", Grid),
        ("n", c_int32),
        ("np", c_int32),
        ("kb", c_int32),
        ("bits", c_int32),
        ("largest", c_int32),
        ("levels", c_void_p),
        ("zeros", c_void_p),
    )


class Table(ctypes.Structure):
    """An embedding table; all null if a model has none."""

    _fields_ = (
        ("q", c_void_p),
        ("f", c_void_p),
        ("scale", c_void_p),
        ("scale_per_row", c_int32),
        ("bits", c_int32),
        ("levels", c_void_p),
        ("zeros", c_void_p),
    )


class Norm(ctypes.Structure):
    """A layer norm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class RelativeBias(ctypes.Structure):
    """A bias for each head and distance, float32 (heads, 2 * positions - 1); null if a model has none."""

    _fields_ = (("values", c_void_p), ("positions", c_int32))


class Layer(ctypes.Structure):
    """An encoder layer."""

    _fields_ = (
        ("query", Linear),
        ("key", Linear),
        ("value", Linear),
        ("output", Linear),
        ("inner", Linear),
        ("outer", Linear),
        ("query_inverse", c_float),
        ("key_inverse", c_float),
        ("score_scale", c_float),
        ("value_inverse", c_float),
        ("value_scale", c_float),
        ("output_norm", Norm),
        ("final_norm", Norm),
    )


class Model(ctypes.Structure):
    """An encoder with its head. Parts that a model lacks stay zero."""

    _fields_ = (
        ("hidden", c_int32),
        ("heads", c_int32),
        ("inner", c_int32),
        ("layers", c_int32),
        ("attention", c_int32),
        ("epsilon", c_float),
        ("head_reads_first", c_int32),
        ("head_activation", c_int32),
        ("words", Table),
        ("positions", Table),
        ("types", Table),
        ("embedding_norm", Norm),
        ("projection", Linear),
        ("embedding", c_int32),
        ("relative_bias", RelativeBias),
        ("layer", POINTER(Layer)),
        ("head_dense", Linear),
        ("head", Linear),
    )


class Batch(ctypes.Structure):
    """Packed sequences; `types` may be null for a model without token types."""

    _fields_ = (
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("ids", c_void_p),
        ("types", c_void_p),
        ("lengths", c_void_p),
    )


class FloatLinear(ctypes.Structure):
    """A float32 linear layer."""

    _fields_ = (("w", c_void_p), ("bias", c_void_p), ("n", c_int32), ("k", c_int32))


class FloatLayer(ctypes.Structure):
    """An encoder layer in float32."""

    _fields_ = (
        ("query", FloatLinear),
        ("key", FloatLinear),
        ("value", FloatLinear),
        ("output", FloatLinear),
        ("inner", FloatLinear),
        ("outer", FloatLinear),
        ("output_norm", Norm),
        ("final_norm", Norm),
    )


class FloatModel(ctypes.Structure):
    """An encoder with its head in float32. Parts that a model lacks stay zero."""

    _fields_ = (
        ("hidden", c_int32),
        ("heads", c_int32),
        ("inner", c_int32),
        ("layers", c_int32),
        ("attention", c_int32),
        ("epsilon", c_float),
        ("score_scale", c_float),
        ("head_reads_first", c_int32),
        ("head_activation", c_int32),
        ("words", Table),
        ("positions", Table),
        ("types", Table),
        ("embedding_norm", Norm),
        ("projection", FloatLinear),
        ("embedding", c_int32),
        ("relative_bias", RelativeBias),
        ("layer", POINTER(FloatLayer)),
        ("head_dense", FloatLinear),
        ("head", FloatLinear),
    )


MIRRORED: tuple[type[ctypes.Structure], ...] = (
    Grid,
    Linear,
    Table,
    Norm,
    RelativeBias,
    Layer,
    Model,
    Batch,
    FloatLinear,
    FloatLayer,
    FloatModel,
)
"""All structures, which have the same names in C++."""
