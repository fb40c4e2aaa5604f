from __future__ import annotations

import pytest
from torch.utils.data import Dataset

from tests.data.loading.test_sampler import make
from tw_seg.data.loading.loader import ResumableLoader
from tw_seg.data.loading.sampler import Draw


class Echo(Dataset):
    def __len__(self):
        return 123

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def loader(workers: int = 0) -> ResumableLoader:
    return ResumableLoader(
        Echo(),
        batch_sampler=make(),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=lambda draws: draws,
    )


def take(source: ResumableLoader, epoch: int, count: int | None = None) -> list[list[Draw]]:
    """What a trainer does: it takes the batches it wants and drops the iterator."""
    iterator = iter(source)
    source.batch_sampler.sampler.set_epoch(epoch)  # after iter, as Lightning does it
    if count is None:
        return list(iterator)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("epoch", "done"), [(0, 0), (0, 1), (1, 4), (2, 6)])
def test_resume(workers, epoch, done):
    whole = [[make().batch(e, s) for s in range(6)] for e in range(4)]
    first = loader(workers)
    for e in range(epoch):
        assert take(first, e) == whole[e]
    assert take(first, epoch, done) == whole[epoch][:done]
    state = first.state_dict()
    # Checkpoints are loaded with weights_only=True.
    assert all(type(value) is int for value in state.values())

    second = loader(workers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert len(second) == 6
    if done < 6:
        assert take(second, epoch) == whole[epoch][done:]
    assert take(second, epoch + 1) == whole[epoch + 1]
    assert take(second, epoch + 1) == whole[epoch + 1]  # from its beginning when asked again


def test_resume_at_an_epochs_end_does_not_rely_on_the_epoch_number():
    # Lightning 2.6 with max_steps: resumed from the end of epoch 0, it calls set_epoch(2), then 3, ...
    first = loader()
    take(first, 0)
    second = loader()
    second.load_state_dict(first.state_dict())
    assert take(second, 2)[0] == make().batch(1, 0)
    assert take(second, 3, count=2)[0] == make().batch(2, 0)
    third = loader()
    third.load_state_dict(second.state_dict())
    assert take(third, 3)[0] == make().batch(2, 2)


def test_limited_epochs():
    source = loader()
    assert take(source, 0, count=2) == [make().batch(0, step) for step in range(2)]
    assert take(source, 1, count=2) == [make().batch(1, step) for step in range(2)]
    resumed = loader()
    resumed.load_state_dict(source.state_dict())
    assert take(resumed, 2, count=1) == [make().batch(2, 0)]


def test_without_state_the_epoch_asked_for_begins():
    assert take(loader(), 5, count=1) == [make().batch(5, 0)]
