"""Find the architecture whose layers a LoRA file changes, by all names and shapes."""

import math
from dataclasses import dataclass

from torch import Tensor

from sdft.lora.architecture import Architecture, list_architectures
from sdft.lora.key_names import Groups, find_layers

TUCKER_ROLES = {"mid", "hada_t1", "hada_t2", "lokr_t2"}  # cores `[rank, rank, h, w]` between two 1 x 1 factors
NORM_ROLES = {"w_norm", "b_norm"}


class ArchitectureMismatchError(ValueError):
    """The layers of a file are not those of any of the given architectures."""


@dataclass
class ArchitectureMatch:
    """(part, layer) by name in the file, None for a name that the architecture lacks; and names with other shapes."""

    architecture: Architecture
    found: dict[str, tuple[str, str] | None]
    misshapen: list[str]

    @property
    def unmatched(self) -> list[str]:
        return [name for name, layer in self.found.items() if layer is None]

    @property
    def mismatches(self) -> tuple[int, int]:
        return len(self.unmatched), len(self.misshapen)


def match_layers(groups: Groups, architecture: Architecture) -> ArchitectureMatch:
    found, misshapen = {}, []
    for name, group in groups.items():
        layers = find_layers(architecture.index, name)
        fitting = [layer for layer in layers if fits_shape(group, architecture.get_shape(*layer))]
        found[name] = next(iter(fitting or layers), None)
        misshapen += [name] * (bool(layers) and not fitting)
    return ArchitectureMatch(architecture, found, misshapen)


def match_architecture(groups: Groups, architectures: list[Architecture]) -> ArchitectureMatch:
    """The first architecture that has all layers with matching shapes."""
    matches = []
    for architecture in architectures:
        matches.append(match := match_layers(groups, architecture))
        if match.mismatches == (0, 0):
            return match
    closest = min(matches, key=lambda match: match.mismatches)
    layers, candidates = closest.unmatched or closest.misshapen, " or ".join(each.name for each in architectures)
    if family := find_closer_family(groups, closest):
        given = closest.architecture
        raise ArchitectureMismatchError(
            f"is for {family} ({layers[0]}); {given.name} is {given.family.name or 'another model'}"
        )
    first = f"{layers[0]} and {len(layers) - 1} more" if len(layers) > 1 else layers[0]
    if closest.unmatched:
        raise ArchitectureMismatchError(f"{first}: fits no layer of {candidates}")
    raise ArchitectureMismatchError(f"does not fit {candidates}: {first} has the wrong shape for its layer")


def find_closer_family(groups: Groups, closest: ArchitectureMatch) -> str | None:
    """The family of the bundled architecture that fits a file better than the closest of the given ones."""
    bundled = [match_layers(groups, architecture) for architecture in list_architectures()]
    best = min(bundled, key=lambda match: match.mismatches)
    is_closer = best.mismatches < closest.mismatches and best.architecture.title != closest.architecture.title
    return best.architecture.title if is_closer else None


def fits_shape(group: dict[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether the tensors match a weight of this shape; missing factors are reported by `parse_layer`."""
    if len(shape) == 1 or NORM_ROLES & set(group):
        return len(shape) == 1 and all(role in NORM_ROLES and t.numel() == shape[0] for role, t in group.items())
    out_size, in_size = shape[0], math.prod(shape[1:])
    if TUCKER_ROLES & set(group):  # kernels are in the core; all but LoRA store `[rank, out]`
        in_size = shape[1]
        is_transposed = lambda role, t: role.endswith("_a") and role != "lokr_w1_a" and t.ndim == 2  # noqa: E731
        group = {role: t.T if is_transposed(role, t) else t for role, t in group.items()}
    if any(role.startswith("lokr") for role in group):
        small, large = (get_matrix_size(group, f"lokr_w{n}", f"lokr_w{n}_a", f"lokr_w{n}_b") for n in (1, 2))
        return small[0] * large[0] in (0, out_size) and small[1] * large[1] in (0, in_size)
    pairs = [("up", "down"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"), ("diff", "diff"), ("diff_b", "")]
    sizes = [get_matrix_size(group, "", *pair) for pair in pairs]
    return all(rows in (0, out_size) and columns in (0, in_size) for rows, columns in sizes)


def get_matrix_size(group: dict[str, Tensor], matrix: str, up: str, down: str) -> tuple[int, int]:
    """Rows and columns of a matrix, stored in full or as two factors; 0 if absent."""
    rows, columns = group.get(matrix, group.get(up)), group.get(matrix, group.get(down))
    return (
        len(rows) if rows is not None and rows.ndim else 0,
        columns.numel() // max(1, len(columns)) if columns is not None and columns.ndim else 0,
    )
