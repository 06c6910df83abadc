"""Fake-quantized attention products: both are sums of integers."""

from __future__ import annotations

from torch import Tensor

from q8core.model.attention import AttentionProducts
from q8core.quant.plan import SitePlan
from q8core.quant.qat.fake_attention import ProductScales, quantized_attention
from q8core.quant.qat.layers import QATLinear


class QATAttentionProducts(AttentionProducts):
    """softmax(Q K^T) V on integers: q, k and v (batch, heads, sequence, D) -> context, same shape.

    It has no ranges of its own: its scales are the output scales of query, key and value. It computes in float as long
    as one of these does: in calibration, and before their or its own start step.

    Args:
        products: the float products that it replaces; it takes over their dropout.
        plan: the site's plan.
        projections: the layer's query, key and value, which the scheme requires to have quantized outputs.
    """

    def __init__(
        self, products: AttentionProducts, *, plan: SitePlan, projections: tuple[QATLinear, QATLinear, QATLinear]
    ) -> None:
        super().__init__(products.dropout)
        self.plan, self.path = plan, plan.path
        # In a tuple, so that the layer's own linears are not registered as children here too.
        self._projections = projections
        self.train(products.training)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, hidden_keys: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Return the context (batch, heads, queries, D); the arguments are those of the float products.

        Raises:
            CalibrationError: in evaluation, if the ranges were never observed.
        """
        if self._in_float():
            return super().forward(q, k, v, hidden_keys, bias)
        scales = ProductScales(*(linear.range_scale("output") for linear in self._projections))
        dropout = self.dropout if self.training else 0.0
        return quantized_attention(q, k, v, scales, hidden_keys, dropout, bias)

    def extra_repr(self) -> str:
        """Say what is quantized, so that printing a model documents it."""
        return f"{super().extra_repr()}, {self.plan.arithmetic}"

    def _in_float(self) -> bool:
        if any(linear.calibrating for linear in self._projections):
            return True
        start = max(each.plan.scheme.start_step for each in (self, *self._projections))
        # the projections have counted this step already
        return self.training and int(self._projections[0].observed_steps) <= start
