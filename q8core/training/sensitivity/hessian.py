"""Products with the Hessian of a loss, its trace by Hutchinson's estimator, its top eigenvalue by power iteration.

The Hessian is never built: with the gradient g of the loss, H v is the gradient of g . v. The loss must have second
derivatives, as our network has in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

LEAST_CHANGE = 1e-2
"""An eigenvalue has converged when an iteration changes it by less than this share (as in Q-BERT's code)."""
MOST_ITERATIONS = 20

Losses = Callable[[], Iterable[tuple[Tensor, float]]]
"""Computes a loss batch by batch: each batch's mean loss with its graph, and the batch's share of all rows."""


def hessian_products(
    loss: Tensor, groups: Sequence[Sequence[Tensor]], vectors: Sequence[Sequence[Tensor]]
) -> list[tuple[Tensor, ...]]:
    """Return for each group of parameters the product of its own block of the Hessian with its vectors.

    Args:
        loss: a scalar with its graph, which is freed.
        groups: parameters of the loss; none is in two groups.
        vectors: for each parameter a vector of its shape.
    """
    parameters = [parameter for group in groups for parameter in group]
    gradients = list(torch.autograd.grad(loss, parameters, create_graph=True))
    products: list[tuple[Tensor, ...]] = []
    for place, (group, vector) in enumerate(zip(groups, vectors, strict=True)):
        own, gradients = gradients[: len(group)], gradients[len(group) :]
        last = place == len(groups) - 1
        products.append(
            torch.autograd.grad(own, group, grad_outputs=vector, retain_graph=not last, materialize_grads=True)
        )
    return products


def trace_sample(loss: Tensor, parameters: Sequence[Tensor], generator: Generator) -> list[float]:
    """Return for each parameter one sample whose mean is the trace of its block of the Hessian.

    One vector v of signs probes all parameters at once: of v . H v the share v_i . (H v)_i of parameter i is its trace
    and products of different signs, which have mean 0 (Hutchinson, 1990).

    Args:
        loss: a scalar with its graph, which is freed.
        parameters: parameters of the loss.
        generator: NumPy's, so that every device has the same signs.
    """
    signs = [_signs(parameter, generator) for parameter in parameters]
    (products,) = hessian_products(loss, [parameters], [signs])
    return [_dot([sign], [product]) for sign, product in zip(signs, products, strict=True)]


def top_eigenvalues(
    losses: Losses,
    groups: Sequence[Sequence[Tensor]],
    generator: Generator,
    converged: Callable[[], object] = lambda: None,
) -> list[float]:
    """Return for each group of parameters the eigenvalue of largest magnitude of its block of the Hessian.

    Power iteration, for all groups in step, because they share the loss and its gradient. The parameters of a group are
    one vector of norm 1.

    Args:
        losses: computes the loss again in each iteration.
        groups: parameters of the loss; none is in two groups.
        generator: NumPy's; for the first vectors.
        converged: called whenever a group's eigenvalue is known.
    """
    vectors = [_unit([_normal(parameter, generator) for parameter in group]) for group in groups]
    found = [math.inf] * len(groups)
    active = list(range(len(groups)))
    for _ in range(MOST_ITERATIONS):
        products = _mean_products(losses, [groups[i] for i in active], [vectors[i] for i in active])
        still: list[int] = []
        for i, product in zip(active, products, strict=True):
            before, found[i] = found[i], _dot(vectors[i], product)
            vectors[i] = _unit(product)
            if abs(found[i] - before) < LEAST_CHANGE * abs(found[i]) or found[i] == before or not _norm(product):
                converged()
            else:
                still.append(i)
        active = still
        if not active:
            break
    for _ in active:
        converged()
    return found


def _mean_products(
    losses: Losses, groups: Sequence[Sequence[Tensor]], vectors: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    sums = [[torch.zeros_like(vector) for vector in group] for group in vectors]
    for loss, share in losses():
        for group, products in zip(sums, hessian_products(loss, groups, vectors), strict=True):
            for total, product in zip(group, products, strict=True):
                total.add_(product, alpha=share)
    return sums


def _signs(like: Tensor, generator: Generator) -> Tensor:
    # bits, of which a byte has eight: drawn one by one they take a third of a probe's time
    count = like.numel()
    bits = np.unpackbits(np.frombuffer(generator.bytes(-(-count // 8)), np.uint8), count=count)
    return torch.from_numpy(bits).reshape(like.shape).to(like).mul_(2).sub_(1)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.from_numpy(generator.standard_normal(tuple(like.shape), np.float32)).to(like)


def _unit(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the vectors, divided by their common norm; zeros stay zeros."""
    norm = _norm(vectors) or 1.0
    return [vector / norm for vector in vectors]


def _norm(vectors: Sequence[Tensor]) -> float:
    return math.sqrt(_dot(vectors, vectors))


def _dot(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return sum(float((one * other).sum(dtype=torch.float64)) for one, other in zip(ones, others, strict=True))
