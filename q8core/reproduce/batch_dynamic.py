"""The original's DYNAMIC mode, simulated: symmetric, one scale per tensor, activations scaled by the current batch.

It is the paper's post-training baseline ("DQ"). The scale of an activation is the largest magnitude of the whole batch,
padding included, so an answer depends on its batch. No engine should do that, so it exists only here, with integers
stored in float32.

Source: Q8BERT (Zafrir et al., 2019) and the DYNAMIC mode of NLP Architect, whose configuration puts queries and keys on
an 8-bit grid as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from q8core.model.network import Network
from q8core.quant.ops.arithmetic import (
    dequantize,
    dequantize_bias,
    quantize,
    quantize_bias,
    quantize_i8,
    rescale_factor,
    scale_from_threshold,
)
from q8core.quant.qat.fake_quant import fake_quantize
from q8core.quant.rules.ranges import abs_max

_TABLES = ("word_embeddings", "position_embeddings")
_REQUANTIZED = (".query", ".key")


class BatchDynamicLinear(nn.Module):
    """A linear layer x (..., in) -> (..., out) on integers, scaled by max|x| of the whole `x`; inference only."""

    def __init__(self, linear: nn.Linear, *, requantize_output: bool) -> None:
        super().__init__()
        self.requantize_output = requantize_output
        self.scale_w = _tensor_scale(linear.weight.detach())
        self.w_q = quantize(linear.weight.detach(), self.scale_w)
        self.bias = linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; the bias is rounded to the accumulator's step, as an int32."""
        scale_x = _tensor_scale(x)
        bias = dequantize_bias(quantize_bias(self.bias, scale_x, self.scale_w), scale_x, self.scale_w)
        y = F.linear(quantize(x, scale_x), self.w_q) * rescale_factor(scale_x, self.scale_w) + bias
        return fake_quantize(y, _tensor_scale(y)) if self.requantize_output else y


@torch.no_grad()
def simulate_batch_dynamic(model: Network) -> Network:
    """Replace all linear layers and quantize the word and position tables; return the changed model.

    Raises:
        CalibrationError: if a weight, or later an activation, is infinite or NaN.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(path, BatchDynamicLinear(module, requantize_output=path.endswith(_REQUANTIZED)))
        elif isinstance(module, nn.Embedding) and path.endswith(_TABLES):
            scale = _tensor_scale(module.weight.detach())
            module.weight.copy_(dequantize(quantize_i8(module.weight.detach(), scale), scale))
    return model.eval()


def _tensor_scale(x: Tensor) -> Tensor:
    return scale_from_threshold(abs_max(x).reshape(1))
