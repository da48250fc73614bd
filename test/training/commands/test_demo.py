"""`pose_reloc demo`: what it passes on. `make demo` runs it."""

from types import SimpleNamespace

import training.commands.arguments  # noqa: F401  keeps what is replaced below, if it comes first
from pose_reloc.cli import main


def test_the_device_is_that_of_training_and_of_the_map(tmp_path, monkeypatch):
    asked = []

    def built(dataset, settings, *names):
        asked.append(settings.device)
        return SimpleNamespace(scene=None)

    def mapped(scene, samples, settings):
        asked.append(settings.device)
        raise KeyboardInterrupt

    monkeypatch.setattr('training.datasets.synthetic.write_scene', lambda *args: None)
    dataset = SimpleNamespace(train=[], test=[])
    monkeypatch.setattr('training.datasets.open_dataset', lambda *args: dataset)
    monkeypatch.setattr('training.build.build_scene', built)
    monkeypatch.setattr('training.build.with_landmarks', mapped)
    assert main(['demo', '--out', str(tmp_path), '--device', 'cuda:1']) != 0
    assert asked == ['cuda:1', 'cuda:1']
