"""One thread an operation: tiny tensors gain nothing from two, and wait for each other where a core is busy."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_an_operation():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
