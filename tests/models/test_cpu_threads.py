"""Small models compute on one thread, large ones on all."""

import pytest
import torch

from sdft.models.cpu_threads import MIN_PARALLEL_SIZE, choose_num_threads, limit_threads


class FakeUNet(torch.nn.Module):
    def __init__(self, width, device="cpu"):
        super().__init__()
        self.config, self.device = type("Config", (), {"block_out_channels": (width, 2 * width)}), torch.device(device)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    yield
    torch.set_num_threads(previous)


def test_the_embedded_model_uses_one_thread_and_stable_diffusion_all():
    assert choose_num_threads(FakeUNet(48), (16, 4, 8, 8)) == 1
    assert choose_num_threads(FakeUNet(320), (1, 4, 64, 64)) == 2
    assert (
        choose_num_threads(FakeUNet(1), (MIN_PARALLEL_SIZE, 4, 1, 1)) == 2
        and choose_num_threads(FakeUNet(1), (MIN_PARALLEL_SIZE - 1, 4, 1, 1)) == 1
    )


def test_spinning_threads_and_a_gpu_keep_all_threads(monkeypatch):
    assert choose_num_threads(FakeUNet(48, "cuda"), (1, 4, 8, 8)) == 2
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert choose_num_threads(FakeUNet(48), (1, 4, 8, 8)) == 2


def test_the_number_of_threads_is_restored():
    with pytest.raises(RuntimeError), limit_threads(FakeUNet(48), (1, 4, 8, 8)):
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == 2
    with limit_threads(FakeUNet(320), (1, 4, 64, 64)):
        assert torch.get_num_threads() == 2
