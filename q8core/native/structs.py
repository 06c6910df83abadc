"""The structures of ``src/model.h`` and ``src/float_model.h``, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p


class Grid(ctypes.Structure):
    """How floats become unsigned bytes."""

    _fields_ = (("inverse", c_float), ("low", c_float), ("high", c_float), ("shift", c_float))


class Linear(ctypes.Structure):
    """An int8 linear layer."""

    _fields_ = (
        ("w", c_void_p),
        ("comp", c_void_p),
        ("signed_comp", c_void_p),
        ("r", c_void_p),
        ("bias", c_void_p),
        ("input", Grid),
        ("n", c_int32),
        ("np", c_int32),
        ("kb", c_int32),
    )


class Table(ctypes.Structure):
    """An embedding table."""

    _fields_ = (("q", c_void_p), ("f", c_void_p), ("scale", c_void_p), ("scale_per_row", c_int32))


class Norm(ctypes.Structure):
    """A layer norm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


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
    """A BERT with its head."""

    _fields_ = (
        ("hidden", c_int32),
        ("heads", c_int32),
        ("inner", c_int32),
        ("layers", c_int32),
        ("epsilon", c_float),
        ("classify", c_int32),
        ("words", Table),
        ("positions", Table),
        ("types", Table),
        ("embedding_norm", Norm),
        ("layer", POINTER(Layer)),
        ("pooler", Linear),
        ("head", Linear),
    )


class Batch(ctypes.Structure):
    """Packed sequences."""

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
    """A BERT with its head in float32."""

    _fields_ = (
        ("hidden", c_int32),
        ("heads", c_int32),
        ("inner", c_int32),
        ("layers", c_int32),
        ("epsilon", c_float),
        ("score_scale", c_float),
        ("classify", c_int32),
        ("words", Table),
        ("positions", Table),
        ("types", Table),
        ("embedding_norm", Norm),
        ("layer", POINTER(FloatLayer)),
        ("pooler", FloatLinear),
        ("head", FloatLinear),
    )
