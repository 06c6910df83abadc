"""The fake-quantized twin of Hugging Face's `BertSelfAttention`: it also quantizes the attention products."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertSelfAttention

from q8core.errors import SchemeError
from q8core.quant.context import ForwardContext
from q8core.quant.fake_attention import ProductScales, quantized_attention
from q8core.quant.layers import QATLinear
from q8core.quant.scheme import SlotScheme


class QATSelfAttention(BertSelfAttention):
    """Self-attention whose products are sums of integers: hidden states (batch, sequence, H) -> context, likewise.

    It has no ranges of its own: the scales are those of the requantized outputs of query, key and value. It computes
    in float as long as one of these does: in calibration, and before their or its own start step.
    """

    def __init__(self, attention: BertSelfAttention, *, path: str, slot: SlotScheme, context: ForwardContext) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(attention))  # sizes, dropout, the linears: all that the plain one has
        self.path, self.slot, self.context = path, slot, context

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - the base's annotation forgets the second result
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context (batch, sequence, H) and, in float only, the probabilities.

        Args:
            hidden_states: (batch, sequence, H).
            attention_mask: as Hugging Face makes it, (batch, 1, sequence, sequence): False or a very negative number
                where a key is hidden.
            past_key_values: not used by an encoder.
            kwargs: what Hugging Face passes to every attention.

        Raises:
            CalibrationError: in evaluation, if the ranges were never observed.
            InputError: if the mask does more than hide keys.
            SchemeError: if the probabilities are asked for (output_attentions).
        """
        if self._in_float():
            return super().forward(hidden_states, attention_mask, **kwargs)  # pyright: ignore[reportReturnType]
        if kwargs.get("output_attentions") or getattr(self.config, "output_attentions", False):
            raise SchemeError(f"{self.path}: quantized attention products keep no probabilities for output_attentions")
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        linears = self._linears()
        q, k, v = (linear(hidden_states).view(shape).transpose(1, 2) for linear in linears)
        context = quantized_attention(
            q,
            k,
            v,
            ProductScales(*(linear.range_scale("output") for linear in linears)),
            self.context.hidden_keys(attention_mask),
            self.dropout.p if self.training else 0.0,
        )
        return context.transpose(1, 2).reshape(hidden_states.shape), None

    def extra_repr(self) -> str:
        """Say what is quantized, so that printing a model documents it."""
        return "quantized attention products"

    def _linears(self) -> tuple[QATLinear, QATLinear, QATLinear]:
        query, key, value = self.query, self.key, self.value
        # the scheme requires it (Scheme.quantizes_products)
        assert isinstance(query, QATLinear)
        assert isinstance(key, QATLinear)
        assert isinstance(value, QATLinear)
        return query, key, value

    def _in_float(self) -> bool:
        linears = self._linears()
        if any(linear.collectors is not None for linear in linears):
            return True
        start = max(self.slot.start_step, *(linear.slot.start_step for linear in linears))
        return self.training and int(linears[0].observed_steps) < start
