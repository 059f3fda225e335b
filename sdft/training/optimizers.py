"""An optimizer that refuses its words does so before anything takes time."""

from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig


def check_optimizer(cfg: DictConfig) -> None:
    """Build it for one weight; `ValueError` with what its constructor says."""
    import torch

    made = instantiate(cfg, _convert_="all")
    if not isinstance(made, partial):
        raise ValueError(
            f"optimizer._partial_={cfg.get('_partial_')}: give true, for it is built when there are weights"
        )
    given = ", ".join(f"{key}={value}" for key, value in made.keywords.items())
    try:
        made([torch.nn.Parameter(torch.zeros(1))])
    except Exception as error:  # of many kinds, by what it is and what is wrong
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"optimizer: {made.func.__name__}({given}) says: {told}") from None
