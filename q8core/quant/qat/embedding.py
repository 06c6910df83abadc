"""The fake-quantized version of `nn.Embedding`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from q8core.quant.ops.arithmetic import per_row
from q8core.quant.plan import SitePlan
from q8core.quant.qat.fake_quant import straight_through
from q8core.quant.qat.weight_grid import WeightGrid, WeightSteps, spread, weight_grid, weight_integers
from q8core.quant.quantizer import Quantizer


class QATEmbedding(nn.Embedding):
    """An embedding whose rows are on a grid: ids (...) -> (..., dim).

    Only the rows that were looked up are quantized, which equals a lookup in the quantized table.
    """

    def __init__(self, embedding: nn.Embedding, *, plan: SitePlan) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq, self.sparse = embedding.scale_grad_by_freq, embedding.sparse
        self.weight = embedding.weight
        assert plan.weight is not None
        self.plan, self.path = plan, plan.path
        self.weight_quantizer: Quantizer = plan.weight
        self.weight_steps = WeightSteps(self.weight, plan.weight, plan.path, follows=False)
        self.train(embedding.training)
        self.collecting = False

    def forward(self, input: Tensor) -> Tensor:
        """Return the dequantized rows (..., dim) of the ids `input` (...)."""
        rows = super().forward(input)
        if self.collecting:
            return rows
        ids, flat = input.reshape(-1), rows.detach().reshape(-1, self.embedding_dim)
        log_step = self.weight_steps.log_step
        with torch.no_grad():
            grid = self._grid_of(ids, flat)
            flat_q = weight_integers(flat, self.weight_quantizer, grid, torch.float32)
            rows_hat = flat_q.mul_(per_row(grid.scale)).to(rows.dtype).view(rows.shape)
        if log_step is not None and len(log_step) > 1:
            log_step = spread(log_step, self.num_embeddings)[ids]
        through = self.weight_steps.gated_rows(rows.reshape(flat.shape), grid, log_step)
        return straight_through(through.view(rows.shape), rows_hat)

    def weight_grid(self) -> WeightGrid:
        """Return the table's grid as it would be deployed now.

        Raises:
            CalibrationError: if the table is not finite.
        """
        return self.weight_steps.grid(self.weight.detach())

    def _grid_of(self, ids: Tensor, rows: Tensor) -> WeightGrid:
        """Return the grid of the rows (N, dim) with these ids (N,); rows with a range of their own need no others."""
        if self.weight_quantizer.granularity == "channel" and self.weight_steps.log_step is None:
            return weight_grid(rows, self.weight_quantizer, self.path)
        return self.weight_grid().rows(self.num_embeddings).of(ids)

    def extra_repr(self) -> str:
        """Describe shapes and scheme."""
        weight = self.weight_quantizer
        return f"{super().extra_repr()}, weight: {weight.bits} bits per {weight.granularity}"
