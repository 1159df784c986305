"""What a save in the background needs: copies whose memory stays, and optimizer states that are there before a step."""

import torch

from hanlin.training.optim import begin_states
from hanlin.training.saving import Staging


def test_copies_keep_their_memory_from_save_to_save():
    staging, weight, count = Staging(), torch.randn(5, 3), torch.zeros((), dtype=torch.int64)
    first = staging.copy({"weight": weight, "count": count})
    assert torch.equal(first["weight"], weight)
    place = first["weight"].data_ptr()
    weight += 1
    count += 1
    assert not torch.equal(first["weight"], weight)  # what is being written does not change with the weights
    second = staging.copy({"weight": weight, "count": count})
    assert torch.equal(second["weight"], weight)
    assert second["count"] == 1
    assert second["weight"].data_ptr() == place
    assert staging.copy({"weight": weight.T})["weight"].shape == (3, 5)


def test_states_made_ahead_change_no_step():
    """Bit for bit; and where there are states already, they stay."""
    found = []
    for ahead in (False, True):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        for _ in range(3):
            if ahead:
                begin_states(optimizer)
            weight.grad = torch.randn(4, 3)
            optimizer.step()
        found.append((weight.data, optimizer.state[weight]))
    (one, states), (other, others) = found
    assert torch.equal(one, other)
    assert states.keys() == others.keys()
    assert all(torch.equal(states[key], others[key]) and states[key].dtype == others[key].dtype for key in states)
