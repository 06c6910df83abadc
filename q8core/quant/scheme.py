"""What is quantized and how: a `Scheme` is plain data, and the presets are schemes.

A BERT has twelve slots (`SLOTS`); each has a `SlotScheme`, and `overrides` change single modules by a glob of
their path. Everything unknown is a `SchemeError`: a typo must never leave a layer in float32 silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Literal, cast, get_args

from q8core.documents import shown
from q8core.errors import SchemeError

Granularity = Literal["per_tensor", "per_channel"]
ActivationRange = Literal["ema", "dynamic", "none"]
InputGrid = Literal["symmetric", "asymmetric"]

EMBEDDING_SLOTS = ("word_embeddings", "position_embeddings", "token_type_embeddings")
LINEAR_SLOTS = (
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_in",
    "ffn_out",
    "pooler",
    "head",
)
ATTENTION_PRODUCTS = "attention_products"
"""Q K^T and P V of an attention, both in integers: see `q8core.quant.products`."""
SLOTS = (*EMBEDDING_SLOTS, *LINEAR_SLOTS, ATTENTION_PRODUCTS)
REQUANTIZABLE_SLOTS = ("query", "key", "value")


@dataclass(frozen=True)
class SlotScheme:
    """How the modules of one slot are quantized.

    Attributes:
        enabled: False leaves the module in float32.
        weight: one scale per tensor, or one per output row (linear) or table row (embedding); the attention
            products have no weight.
        activation: where the input scale comes from: "ema" of max|x| in training or calibration (static at
            inference), "dynamic" per token, or "none" (embeddings have no input to quantize, the attention
            products take their operands with the scales they come with).
        requantize_output: put the output on an 8-bit grid too: query and key, the operands of Q K^T, and value,
            where the attention products are quantized.
        start_step: training steps that only observe ranges and compute in float32.
        input_grid: "symmetric" around 0, 255 values from -max|x| to max|x|; or, for static ("ema") inputs,
            "asymmetric", 256 values with a zero point between the smallest and the largest that is observed.
    """

    enabled: bool = True
    weight: Granularity = "per_channel"
    activation: ActivationRange = "ema"
    requantize_output: bool = False
    start_step: int = 0
    input_grid: InputGrid = "symmetric"

    def __post_init__(self) -> None:
        _check_bool("enabled", self.enabled)
        _check_choice("weight", self.weight, get_args(Granularity))
        _check_choice("activation", self.activation, get_args(ActivationRange))
        _check_bool("requantize_output", self.requantize_output)
        if type(self.start_step) is not int or self.start_step < 0:
            raise SchemeError(f"start_step must be an integer of at least 0, not {shown(self.start_step)}")
        _check_choice("input_grid", self.input_grid, get_args(InputGrid))
        if self.input_grid == "asymmetric" and self.activation != "ema":
            raise SchemeError(
                f"input_grid 'asymmetric' needs activation 'ema', not {shown(self.activation)}: set it to 'symmetric'"
            )
        if self.requantize_output and self.activation != "ema":
            raise SchemeError(f"requantize_output needs activation 'ema', not {shown(self.activation)}")


@dataclass(frozen=True)
class Scheme:
    """A complete description of a quantized BERT.

    Attributes:
        name: the preset's name, or the user's own.
        slots: one `SlotScheme` for each of `SLOTS`.
        ema_decay: weight of the old range when a batch is observed.
        ema_debias: use min(ema_decay, (1 + n) / (10 + n)) at observation n, so that the first batch is forgotten.
        ignore_padding: leave positions with attention_mask 0 out of the ranges.
        share_qkv_input: query, key and value of a layer use one input range (they read the same tensor).
        overrides: glob of a module path -> the `SlotScheme` fields to change there; later entries win.

    Raises:
        SchemeError: if a slot is missing or unknown, or a value is not allowed.
    """

    name: str
    slots: Mapping[str, SlotScheme]
    ema_decay: float = 0.9999
    ema_debias: bool = True
    ignore_padding: bool = True
    share_qkv_input: bool = True
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])

    def __post_init__(self) -> None:
        if not isinstance(cast(object, self.name), str) or not self.name:
            raise SchemeError(f"a scheme's name must be a text that is not empty, not {shown(self.name)}")
        _check_keys("slot", self.slots, SLOTS, complete=True)
        if type(self.ema_decay) not in (int, float) or not 0 <= self.ema_decay < 1:
            raise SchemeError(f"ema_decay must be at least 0 and less than 1, not {shown(self.ema_decay)}")
        for flag in ("ema_debias", "ignore_padding", "share_qkv_input"):
            _check_bool(flag, getattr(self, flag))
        for slot, slot_scheme in self.slots.items():
            _check_slot(slot, slot_scheme)
        _check_products(self.slots)
        for glob, changes in self.overrides.items():
            _slot_from_dict(f"override {shown(glob)}", changes, base=SlotScheme())
        object.__setattr__(self, "slots", {slot: self.slots[slot] for slot in SLOTS})
        object.__setattr__(self, "overrides", {glob: dict(change) for glob, change in self.overrides.items()})

    def resolve(self, slot: str, path: str) -> SlotScheme:
        """Return the scheme of the module at `path`, which fills `slot`: the slot's, then matching overrides."""
        _check_keys("slot", {slot: None}, SLOTS)
        resolved = self.slots[slot]
        for glob, changes in self.overrides.items():
            if fnmatchcase(path, glob):
                resolved = _slot_from_dict(f"override {shown(glob)}", changes, base=resolved)
        _check_slot(slot, resolved, where=f" at {path}")
        return resolved

    def quantizes_products(self, path: str) -> bool:
        """Return whether the attention at `path` (ending in attention.self) multiplies integers.

        Raises:
            SchemeError: if query, key and value there do not fit that.
        """
        here = {ATTENTION_PRODUCTS: self.resolve(ATTENTION_PRODUCTS, path)}
        here |= {slot: self.resolve(slot, f"{path}.{slot}") for slot in REQUANTIZABLE_SLOTS}
        _check_products(here, where=f" at {path}")
        return here[ATTENTION_PRODUCTS].enabled

    def has_activation(self, kind: ActivationRange) -> bool:
        """Return whether any module may take its input scale from there."""
        by_override = any(change.get("activation") == kind for change in self.overrides.values())
        return by_override or any(slot.enabled and slot.activation == kind for slot in self.slots.values())

    def to_dict(self) -> dict[str, object]:
        """Return the scheme as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Scheme:
        """Return the scheme that `to_dict` described.

        First manifests knew neither the slot of the attention products, which are in float32 without it, nor a
        slot's input grid, which is symmetric.

        Raises:
            SchemeError: if a key is unknown or missing (the message names the allowed ones) or a value is wrong.
        """
        known = tuple(f.name for f in fields(cls))
        _check_keys("scheme key", data, known, complete=True)
        slots: dict[str, SlotScheme] = {}
        for slot, value in _mapping("slots", data["slots"]).items():
            _check_keys("slot", {slot: None}, SLOTS)
            known_to_all = {"input_grid": SlotScheme.input_grid, **_mapping(f"slot {shown(slot)}", value)}
            slots[slot] = _slot_from_dict(f"slot {shown(slot)}", known_to_all)
        slots.setdefault(ATTENTION_PRODUCTS, _FLOAT_PRODUCTS)
        overrides = {
            glob: _mapping(f"override {shown(glob)}", change)
            for glob, change in _mapping("overrides", data["overrides"]).items()
        }
        values = {**data, "slots": slots, "overrides": overrides}
        return cls(**values)  # pyright: ignore[reportArgumentType] - checked in __post_init__


def preset(name: str) -> Scheme:
    """Return the scheme of that name.

    `q8bert` is the default for training, `q8bert-paper` the paper's own rules to the letter, `static` and
    `dynamic` quantize without training; `q8bert-attention` and `static-attention` also quantize the attention
    products.

    Raises:
        SchemeError: if there is no such preset; the message names the presets.
    """
    _check_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]


def _slot_from_dict(what: str, data: Mapping[str, object], base: SlotScheme | None = None) -> SlotScheme:
    known = tuple(f.name for f in fields(SlotScheme))
    _check_keys(f"{what} key", data, known, complete=base is None)
    return replace(base or SlotScheme(), **data)  # pyright: ignore[reportArgumentType] - checked in __post_init__


def _check_slot(slot: str, scheme: SlotScheme, where: str = "") -> None:
    if not scheme.enabled:
        return
    allowed = ("ema", "dynamic") if slot in LINEAR_SLOTS else ("none",)
    _check_choice(f"activation of slot {slot}{where}", scheme.activation, allowed)
    if scheme.requantize_output and slot not in REQUANTIZABLE_SLOTS:
        raise SchemeError(f"requantize_output is for the slots query, key and value, not for {slot}{where}")


def _check_products(slots: Mapping[str, SlotScheme], where: str = "") -> None:
    """Quantized products and the requantized value, their right operand, come together or not at all."""
    requantized = {slot: slots[slot].enabled and slots[slot].requantize_output for slot in REQUANTIZABLE_SLOTS}
    if slots[ATTENTION_PRODUCTS].enabled and not all(requantized.values()):
        plain = next(slot for slot, found in requantized.items() if not found)
        raise SchemeError(
            f"{ATTENTION_PRODUCTS}{where} need requantized query, key and value, but {plain} is not: enable it with "
            f"requantize_output, or disable {ATTENTION_PRODUCTS}"
        )
    if requantized["value"] and not slots[ATTENTION_PRODUCTS].enabled:
        raise SchemeError(
            f"the value{where} is requantized for quantized {ATTENTION_PRODUCTS}, which are disabled: enable them, or "
            "set its requantize_output to false"
        )


def _check_bool(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SchemeError(f"{what} must be true or false, not {shown(value)}")


def _check_choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SchemeError(f"{what} must be one of {', '.join(allowed)}; found {shown(value)}")


def _check_keys(what: str, data: Mapping[str, object], allowed: tuple[str, ...], complete: bool = False) -> None:
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise SchemeError(f"unknown {what} {shown(unknown[0])}; allowed are {', '.join(allowed)}")
    missing = [key for key in allowed if key not in data]
    if complete and missing:
        raise SchemeError(f"missing {what} {shown(missing[0])}; needed are {', '.join(allowed)}")


def _mapping(what: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise SchemeError(f"{what} must be a table of keys and values, not {shown(value)}")
    return cast("Mapping[str, object]", value)


_FLOAT_PRODUCTS = SlotScheme(enabled=False, activation="none")


def _slots(
    weight: Granularity,
    activation: ActivationRange,
    *,
    requantize: bool,
    input_grid: InputGrid = "symmetric",
    products: bool = False,
) -> dict[str, SlotScheme]:
    """Return the paper's slots: all tables but token types, all linears, Q and K requantized; or the products too."""
    table = SlotScheme(weight=weight, activation="none")
    linear = SlotScheme(weight=weight, activation=activation, input_grid=input_grid)
    slots = {slot: linear if slot in LINEAR_SLOTS else table for slot in SLOTS}
    slots["token_type_embeddings"] = replace(table, enabled=False)  # two rows: nothing to gain (as the paper)
    slots[ATTENTION_PRODUCTS] = replace(table, enabled=products)
    for slot in REQUANTIZABLE_SLOTS if products else ("query", "key"):
        slots[slot] = replace(linear, requantize_output=requantize)
    return slots


_PAPER_SLOTS = _slots("per_tensor", "ema", requantize=True)
# A zero point costs the engine nothing, and of a symmetric grid GELU's outputs, almost all above 0, use half.
_DEFAULT_SLOTS = _slots("per_channel", "ema", requantize=True, input_grid="asymmetric")
_ATTENTION_SLOTS = _slots("per_channel", "ema", requantize=True, input_grid="asymmetric", products=True)

PRESETS: Mapping[str, Scheme] = {
    "q8bert": Scheme("q8bert", _DEFAULT_SLOTS),
    "q8bert-attention": Scheme("q8bert-attention", _ATTENTION_SLOTS),
    "q8bert-paper": Scheme(
        "q8bert-paper",
        {**_PAPER_SLOTS, "head": replace(_PAPER_SLOTS["head"], start_step=200)},
        ema_debias=False,
        ignore_padding=False,
        share_qkv_input=False,
    ),
    "static": Scheme("static", _DEFAULT_SLOTS),
    "static-attention": Scheme("static-attention", _ATTENTION_SLOTS),
    "dynamic": Scheme("dynamic", _slots("per_channel", "dynamic", requantize=False)),
}
"""The named schemes."""
