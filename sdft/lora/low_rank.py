"""Arithmetic on low-rank weight changes from their two factors, without building the full matrix.

dW = up @ down of rank r: norms and products from r x r Gram matrices, the best approximation of a lower rank (Eckart and
Young, 1936) from two QR decompositions and one small SVD. All in fp64, so that a round trip is exact to fp32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LowRank = tuple[Tensor, Tensor]  # up `[out, rank]` and down `[rank, in]`; the change is up @ down


@dataclass
class LowRankLayer:
    """The change of one layer in a LoRA file: alpha / rank * up @ down.

    `up` `[out, rank]`, `down` `[rank, in]`; for a convolution `[out, rank, 1, 1]` and `[rank, in, h, w]`.
    `magnitude`, DoRA only: the norm `[out]` of each output's weights, whose direction is that of base plus change; or that of
    each input's, `[1, in]` or `[1, in, 1, 1]`.
    """

    up: Tensor
    down: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the adapted weight."""
        return (len(self.up), *self.down.shape[1:])

    def to_low_rank(self) -> LowRank:
        """The scaled change as two matrices, kernels flattened, in fp64."""
        return self.scale * self.up.double().flatten(1), self.down.double().flatten(1)

    def compute_delta(self) -> Tensor:
        """dW in the shape of the weight, in fp64; for DoRA without the magnitudes."""
        up, down = self.to_low_rank()
        return (up @ down).reshape(self.shape)

    def apply_to(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The adapted weight in fp64, the base at `strength` 0.

        `strength` scales dW, while DoRA magnitudes apply in full, as in peft.
        """
        if strength == 0:
            return weight.double()
        return self.rescale(weight.double() + strength * self.compute_delta().to(weight.device))

    @property
    def has_input_norms(self) -> bool:
        return self.magnitude is not None and self.magnitude.ndim > 1

    def rescale(self, adapted: Tensor) -> Tensor:
        """The weight with the norms of its outputs or inputs replaced by the magnitudes, if there are any."""
        if self.magnitude is None:
            return adapted
        norms = (adapted.transpose(0, 1) if self.has_input_norms else adapted).flatten(1).norm(dim=1)
        scales = self.magnitude.double().to(adapted.device).flatten() / norms
        return adapted * scales.reshape(
            *[1] * self.has_input_norms, -1, *[1] * (adapted.ndim - 1 - self.has_input_norms)
        )


def build_low_rank_layer(product: LowRank, shape: tuple[int, ...]) -> LowRankLayer:
    """A layer in fp32 with alpha equal to the rank, the default of readers that ignore alpha."""
    up, down = product
    up = up.reshape(shape[0], -1, *[1] * (len(shape) - 2)).float().contiguous()
    return LowRankLayer(up, down.reshape(-1, *shape[1:]).float().contiguous(), float(len(down)))


def sum_low_rank(terms: list[tuple[float, LowRank]]) -> LowRank:
    """The exact weighted sum as one product, whose rank is the sum of the ranks."""
    return torch.cat([w * up for w, (up, _) in terms], 1), torch.cat([down for _, (_, down) in terms], 0)


def compute_inner_product(x: LowRank, y: LowRank) -> float:
    """The Frobenius inner product, from the factors."""
    return float(((x[0].T @ y[0]) * (x[1] @ y[1].T)).sum())


def compute_energy(product: LowRank) -> float:
    """The squared Frobenius norm of the change."""
    return max(compute_inner_product(product, product), 0.0)


def compute_squared_distance(x: LowRank, y: LowRank) -> float:
    """The squared Frobenius norm of the difference."""
    return compute_energy(sum_low_rank([(1.0, x), (-1.0, y)]))


def compute_svd(product: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Left singular vectors `[out, r]`, singular values `[r]` and right singular vectors `[r, in]` of the change."""
    up, down = product
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ u, values, v @ q_down.T


def reduce_rank(product: LowRank, rank: int | None = None, energy: float | None = None) -> LowRank:
    """The best approximation of at most `rank`, or of the lowest rank with this fraction of the energy.

    Both factors have the same norm.
    """
    left, values, right = compute_svd(product)
    rank = min(
        rank or len(values), len(values), find_rank_for_energy(values, energy) if energy is not None else len(values)
    )
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def find_rank_for_energy(values: Tensor, energy: float) -> int:
    """The lowest rank, at least 1, whose singular values have this fraction of the energy."""
    cumulative = values.square().cumsum(0)
    return int((cumulative < energy * cumulative[-1] * (1 - 1e-12)).sum()) + 1


def approximate_low_rank(change: Tensor, rank: int, energy: float | None = None) -> LowRank:
    """The best approximation of at most `rank` to a full matrix `[out, in]`.

    Projects on the eigenvectors of the smaller Gram matrix, at a fraction of the cost of an SVD.
    """
    change = change.double()
    tall = change.shape[0] > change.shape[1]
    matrix = change.T if tall else change
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    values, vectors = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    nonzero = int((values > 1e-7 * values[0]).sum())  # smaller values are rounding errors
    rank = max(1, min(rank, nonzero, find_rank_for_energy(values, energy) if energy is not None else rank))
    basis, root = vectors[:, :rank], values[:rank].clamp(min=1e-300).sqrt()
    up, down = basis * root, (basis.T @ matrix) / root[:, None]
    return (down.T, up.T) if tall else (up, down)
