"""Checkpoints: whole at any moment, errors that are told, what a resumed run may change."""

import errno
import threading

import pytest
import torch

from pose_reloc.errors import TrainingError
from training import checkpoint
from training.checkpoint import CheckpointWriter, load_checkpoint

SETTINGS = {'batch': 4, 'learning_rate': 1e-3, 'minutes': None}


def make_state(value, settings=SETTINGS):
    tensors = {'weight': torch.full((1000,), float(value)), 'steps': [torch.tensor(value)]}
    return {'settings': settings, 'data_key': 'abc', 'learner': tensors}


def read(folder):
    state = load_checkpoint(folder, SETTINGS, 'abc')
    return state and int(state['learner']['steps'][0])


@pytest.fixture
def unlimited(monkeypatch):
    monkeypatch.setattr(checkpoint, '_MAX_BYTES_PER_SECOND', float('inf'))


def test_the_newest_state_is_there_at_the_end(tmp_path, unlimited):
    assert read(tmp_path) is None
    with CheckpointWriter(tmp_path) as writer:
        for value in range(4):
            writer.offer(lambda value=value: make_state(value))
    assert read(tmp_path) == 3
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint.pt']


def test_a_state_is_copied_before_training_goes_on(tmp_path, monkeypatch):
    """The optimiser changes its tensors in place while the writer is at work."""
    may_write = threading.Event()
    write = checkpoint.write_atomically
    monkeypatch.setattr(
        checkpoint, 'write_atomically', lambda *args: (may_write.wait(10), write(*args))
    )
    save = torch.save
    monkeypatch.setattr(torch, 'save', lambda *args: (may_write.wait(10), save(*args)))
    state = make_state(1)
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: state)
        state['learner']['weight'].fill_(-1)
        state['learner']['steps'][0].fill_(-1)
        may_write.set()
    found = load_checkpoint(tmp_path, SETTINGS, 'abc')
    assert float(found['learner']['weight'].sum()) == 1000 and read(tmp_path) == 1


def test_an_exception_in_training_waits_for_the_write(tmp_path, unlimited):
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(7))
        raise KeyboardInterrupt
    assert read(tmp_path) == 7


def test_a_full_disk_is_told_to_the_loop(tmp_path, unlimited, monkeypatch):
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(2))

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(TrainingError, match='No space left .* --resume'), writer:
        monkeypatch.setattr('os.fsync', full)
        for value in (3, 4, 5):
            writer.offer(lambda value=value: make_state(value))
    assert read(tmp_path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint.pt']

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(TrainingError, match='No space left'), CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(6))  # the last one: told at the end


def test_short_epochs_do_not_wear_out_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, '_MAX_BYTES_PER_SECOND', 1.0)
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(1))
        writer._wait()
        for value in range(2, 100):
            writer.offer(lambda value=value: make_state(value))
        assert read(tmp_path) == 1
        writer.offer(lambda: make_state(100), whatever_the_time=True)
    assert read(tmp_path) == 100


def test_training_does_not_wait_for_the_disk(tmp_path, unlimited, monkeypatch):
    done = threading.Event()
    write = checkpoint.write_atomically
    monkeypatch.setattr(checkpoint, 'write_atomically', lambda *args: (done.wait(10), write(*args)))
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(1))
        assert read(tmp_path) is None and not done.is_set()
        done.set()
    assert read(tmp_path) == 1


def test_what_a_killed_run_left_behind_is_removed(tmp_path):
    left = tmp_path / '.checkpoint.pt.pose_reloc-writing-x3k2'
    left.write_bytes(b'half')
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(1))
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint.pt']


@pytest.mark.parametrize('name', checkpoint.CHANGEABLE)
def test_settings_that_a_resumed_run_may_change(name, tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(1, SETTINGS | {name: 'old'}))
    assert load_checkpoint(tmp_path, SETTINGS | {name: 'new'}, 'abc')


def test_other_settings_and_images_are_refused(tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(1))
    with pytest.raises(TrainingError, match=r'began with batch=4, now it is 8.*learning_rate'):
        load_checkpoint(tmp_path, SETTINGS | {'batch': 8}, 'abc')
    with pytest.raises(TrainingError, match='other images'):
        load_checkpoint(tmp_path, SETTINGS, 'another key')


@pytest.mark.parametrize('damage', [lambda b: b[: len(b) // 2], lambda b: b'', lambda b: b'junk'])
def test_a_damaged_checkpoint_is_a_sentence(damage, tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.offer(lambda: make_state(1))
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match='cannot be read .* without --resume'):
        load_checkpoint(tmp_path, SETTINGS, 'abc')
