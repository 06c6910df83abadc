from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from torch import Tensor

from q8core.model.network import Network
from q8core.training.batches import collate
from q8core.training.losses import task_loss
from q8core.training.model import load_model
from q8core.training.sensitivity.hessian import hessian_products, top_eigenvalues, trace_sample
from q8core.training.sensitivity.measure import encoder_matrices
from tests.conftest import save_tiny
from tests.training.test_loop import make_task


class Quadratic:
    """x^T A x / 2 of two parameters, (2, 3) and (4,), whose Hessian is the symmetric matrix A."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (4,))]

    def loss(self) -> Tensor:
        x = torch.cat([parameter.flatten() for parameter in self.parameters])
        return x @ self.matrix @ x / 2

    def blocks(self) -> tuple[Tensor, Tensor]:
        return self.matrix[:6, :6], self.matrix[6:, 6:]


def symmetric(seed: int, size: int = 10) -> Tensor:
    random = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return random + random.T


def test_the_trace_of_a_quadratic_form_is_the_mean_of_its_samples() -> None:
    """Each sample is v_i . (A v)_i with signs v: computed here from A itself, and its mean is the trace."""
    toy = Quadratic(symmetric(0))
    generator = default_rng(3)
    samples = np.array([trace_sample(toy.loss(), toy.parameters, generator) for _ in range(4000)])
    traces = [float(block.trace()) for block in toy.blocks()]
    deviations = samples.std(axis=0) / len(samples) ** 0.5
    assert np.all(np.abs(samples.mean(axis=0) - traces) < 4 * deviations)
    assert np.all(deviations > 0)


def test_of_a_diagonal_hessian_one_sample_is_the_trace() -> None:
    toy = Quadratic(torch.diag(torch.arange(10, dtype=torch.float64)))
    assert trace_sample(toy.loss(), toy.parameters, default_rng(0)) == [15.0, 30.0]


def test_products_are_those_of_each_block() -> None:
    toy = Quadratic(symmetric(1))
    vectors = [torch.randn_like(parameter) for parameter in toy.parameters]
    groups = [[parameter] for parameter in toy.parameters]
    found = hessian_products(toy.loss(), groups, [[vector] for vector in vectors])
    for block, vector, (product,) in zip(toy.blocks(), vectors, found, strict=True):
        assert torch.allclose(product.flatten(), block @ vector.flatten())


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_the_top_eigenvalue_is_the_largest_in_magnitude(scale: float) -> None:
    """Shared out over two batches whose mean is the form; the relative change of 1 % leaves a smaller error here."""
    spread = torch.diag(torch.tensor([9.0, 1, 2, 0.5, 1, 1, -8, 1, 2, 0], dtype=torch.float64))
    turn = torch.linalg.qr(symmetric(2))[0]
    turn[:6, 6:], turn[6:, :6] = 0, 0
    turn = torch.block_diag(torch.linalg.qr(turn[:6, :6])[0], torch.linalg.qr(turn[6:, 6:])[0])
    toy = Quadratic(scale * turn @ spread @ turn.T)
    done: list[int] = []

    def losses() -> Iterator[tuple[Tensor, float]]:
        yield 4 * toy.loss(), 0.2
        yield toy.loss() / 4, 0.8

    groups = [[parameter] for parameter in toy.parameters]
    found = top_eigenvalues(losses, groups, default_rng(0), lambda: done.append(1))
    assert found == pytest.approx([9 * scale, -8 * scale], rel=2e-3)
    assert len(done) == 2


def test_a_group_is_one_vector() -> None:
    toy = Quadratic(symmetric(4) + 9 * torch.ones(10, 10))
    largest = max(torch.linalg.eigvalsh(toy.matrix).tolist(), key=abs)
    (found,) = top_eigenvalues(lambda: [(toy.loss(), 1.0)], [toy.parameters], default_rng(0))
    assert found == pytest.approx(largest, rel=1e-3)


def test_a_flat_loss_has_eigenvalue_0() -> None:
    toy = Quadratic(torch.zeros(10, 10, dtype=torch.float64))
    assert top_eigenvalues(lambda: [(toy.loss(), 1.0)], [toy.parameters], default_rng(0)) == [0.0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, dict[str, Tensor]]:
    folder = save_tiny(tmp_path_factory.mktemp("double") / "model", "classify")
    network = load_model(str(folder), "classify").network.double().eval()
    return network, collate(make_task(folder).train_features()[:6], "classify")


def test_products_with_the_networks_hessian_are_differences_of_gradients(
    tiny: tuple[Network, dict[str, Tensor]],
) -> None:
    """(g(w + e v) - g(w - e v)) / 2 e in float64, which knows nothing of second derivatives."""
    network, batch = tiny
    paths = encoder_matrices(network.spec)
    weights = [network.get_parameter(f"{path}.weight") for path in paths]
    generator = torch.Generator().manual_seed(5)
    vectors = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    (found,) = hessian_products(task_loss(network, batch), [weights], [vectors])
    step, gradients = 1e-6, list[tuple[Tensor, ...]]()
    for sign in (1, -1):
        with torch.no_grad():
            for weight, vector in zip(weights, vectors, strict=True):
                weight.add_(vector, alpha=sign * step)
        gradients.append(torch.autograd.grad(task_loss(network, batch), weights))
        with torch.no_grad():
            for weight, vector in zip(weights, vectors, strict=True):
                weight.sub_(vector, alpha=sign * step)
    for path, product, above, below in zip(paths, found, *gradients, strict=True):
        expected = (above - below) / (2 * step)
        assert torch.allclose(product, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())), path
        assert float(product.abs().max()) > 0, path
