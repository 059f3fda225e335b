"""Small operations are one thread's, large ones everybody's."""

import pytest
import torch

from sdft.models.cpu_threads import MIN_PARALLEL_SIZE, choose_num_threads, limit_threads


class Unet(torch.nn.Module):
    def __init__(self, width, device="cpu"):
        super().__init__()
        self.config, self.device = type("Config", (), {"block_out_channels": (width, 2 * width)}), torch.device(device)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    yield
    torch.set_num_threads(before)


def test_the_embedded_model_computes_on_one_thread_and_stable_diffusion_on_all():
    assert choose_num_threads(Unet(48), (16, 4, 8, 8)) == 1
    assert choose_num_threads(Unet(320), (1, 4, 64, 64)) == 2
    assert (
        choose_num_threads(Unet(1), (MIN_PARALLEL_SIZE, 4, 1, 1)) == 2
        and choose_num_threads(Unet(1), (MIN_PARALLEL_SIZE - 1, 4, 1, 1)) == 1
    )


def test_threads_that_stay_awake_and_a_gpu_s_are_left_alone(monkeypatch):
    assert choose_num_threads(Unet(48, "cuda"), (1, 4, 8, 8)) == 2
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert choose_num_threads(Unet(48), (1, 4, 8, 8)) == 2


def test_afterwards_there_are_as_many_as_before():
    with pytest.raises(RuntimeError), limit_threads(Unet(48), (1, 4, 8, 8)):
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == 2
    with limit_threads(Unet(320), (1, 4, 64, 64)):
        assert torch.get_num_threads() == 2
