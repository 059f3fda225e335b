"""A change of a weight kept as two thin matrices, and what can be computed on them without ever making the change itself.

dW = up @ down of rank r: norms and products from Gram matrices of r x r, the best approximation of a lower rank (Eckart and
Young, 1936) from two QR decompositions and one small SVD. All of it in fp64, so that a round trip is exact to fp32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LowRank = tuple[Tensor, Tensor]  # up `[out, rank]` and down `[rank, in]`; the change is up @ down


@dataclass
class LowRankLayer:
    """What a file changes one layer by: alpha / rank * up @ down.

    `up` `[out, rank]`, `down` `[rank, in]`, or of a convolution `[out, rank, 1, 1]` and `[rank, in, h, w]`.
    `magnitude` `[out]` is of a DoRA, whose weight has that norm an output and the direction of base plus change.
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
        """Of the weight that is changed."""
        return (len(self.up), *self.down.shape[1:])

    def to_low_rank(self) -> LowRank:
        """The scaled change as two matrices, kernels flattened, in fp64."""
        return self.scale * self.up.double().flatten(1), self.down.double().flatten(1)

    def compute_delta(self) -> Tensor:
        """dW as the weight is shaped, in fp64; of a DoRA the change of direction alone."""
        up, down = self.to_low_rank()
        return (up @ down).reshape(self.shape)

    def apply_to(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What the weight becomes, in fp64: a DoRA's direction moves by `strength`, and its magnitude is taken over whole."""
        moved = weight.double() + strength * self.compute_delta().to(weight.device)
        if self.magnitude is None:
            return moved
        norms = moved.flatten(1).norm(dim=1)
        return moved * (self.magnitude.double().to(weight.device) / norms).reshape(-1, *[1] * (weight.ndim - 1))


def build_low_rank_layer(product: LowRank, shape: tuple[int, ...]) -> LowRankLayer:
    """As files hold it, in fp32, with alpha equal to the rank, which readers that know no alpha also assume."""
    up, down = product
    up = up.reshape(shape[0], -1, *[1] * (len(shape) - 2)).float().contiguous()
    return LowRankLayer(up, down.reshape(-1, *shape[1:]).float().contiguous(), float(len(down)))


def sum_low_rank(parts: list[tuple[float, LowRank]]) -> LowRank:
    """The weighted sum, exactly, as one product: ranks add up."""
    return torch.cat([w * up for w, (up, _) in parts], 1), torch.cat([down for _, (_, down) in parts], 0)


def inner_product(one: LowRank, other: LowRank) -> float:
    """The sum of the products of their entries, from the factors alone."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def compute_energy(product: LowRank) -> float:
    """The squared Frobenius norm of the change."""
    return max(inner_product(product, product), 0.0)


def compute_squared_distance(one: LowRank, other: LowRank) -> float:
    """The squared Frobenius norm of their difference."""
    return compute_energy(sum_low_rank([(1.0, one), (-1.0, other)]))


def compute_svd(product: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Left singular vectors `[out, r]`, singular values `[r]` and right ones `[r, in]` of the change."""
    up, down = product
    left, small = torch.linalg.qr(up)
    right, other = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small @ other.T, full_matrices=False)
    return left @ u, values, v @ right.T


def reduce_rank(product: LowRank, rank: int | None = None, energy: float | None = None) -> LowRank:
    """The nearest change of at most `rank`, or of the least rank with `energy` of the energy; both factors of the same size."""
    left, values, right = compute_svd(product)
    rank = min(
        rank or len(values), len(values), find_rank_for_energy(values, energy) if energy is not None else len(values)
    )
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def find_rank_for_energy(values: Tensor, energy: float) -> int:
    """The least rank, 1 at the least, whose singular values hold the share `energy` of all energy."""
    held = values.square().cumsum(0)
    return int((held < energy * held[-1] * (1 - 1e-12)).sum()) + 1


def approximate_low_rank(change: Tensor, rank: int, energy: float | None = None) -> LowRank:
    """The nearest product of at most `rank` to a whole matrix `[out, in]`: its projection on its main directions, which
    are those of the smaller of its two Gram matrices; that costs a fraction of an SVD.
    """
    change = change.double()
    tall = change.shape[0] > change.shape[1]
    matrix = change.T if tall else change
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    values, vectors = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    nonzero = int((values > 1e-7 * values[0]).sum())  # below is rounding
    rank = max(1, min(rank, nonzero, find_rank_for_energy(values, energy) if energy is not None else rank))
    main, root = vectors[:, :rank], values[:rank].clamp(min=1e-300).sqrt()
    one, other = main * root, (main.T @ matrix) / root[:, None]
    return (other.T, one.T) if tall else (one, other)
