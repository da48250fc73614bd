"""The trainer: it learns, keeps frames apart, repeats itself, and says what is wrong."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from pose_reloc.errors import DatasetError, SettingsError, TrainingError, WeightsError
from pose_reloc.network import NetworkSettings, PoseRegressor
from pose_reloc.preprocess import normalize
from pose_reloc.relocalizer import Relocalizer
from pose_reloc.scene import SceneModel
from training import run_folder
from training.batches import Batches
from training.build import build_scene, with_landmarks
from training.cache import CacheSettings, build_cache
from training.datasets import open_dataset
from training.evaluate import evaluate
from training.held_out import held_out_blocks
from training.losses import LossSettings
from training.mapping import MappingSettings
from training.settings import TrainSettings, load_preset
from training.trainer import Trainer, train
from training.view_synthesis import ViewSettings

SMALL = TrainSettings(
    network=NetworkSettings('resnet18', hidden=64),
    backbone_weights='none',
    short_side=48,
    points=64,
    epochs=12,
    batch=8,
    learning_rate=1e-3,
    normalize_translation=True,
    validate_every=4,
    device='cpu',
    precision='float32',
)


@pytest.fixture(scope='module')
def dataset(room):
    return open_dataset('7scenes', room)


@pytest.fixture(scope='module')
def cache(dataset):
    return build_cache(dataset.train, CacheSettings(SMALL.short_side, SMALL.points))


@pytest.fixture(scope='module')
def sequences(dataset):
    return [sample.sequence for sample in dataset.train]


@pytest.mark.parametrize('views', [None, ViewSettings(sigma_m=0.05, sigma_rad=0.05)])
def test_the_loss_falls(cache, sequences, views):
    result = train(cache, sequences, replace(SMALL, views=views))
    losses = [row['loss'] for row in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert result.recipe['images_held_out'] > 0


def test_same_seed_same_weights(cache, sequences):
    settings = replace(SMALL, epochs=2, views=ViewSettings())
    first, second = (train(cache, sequences, settings).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train(cache, sequences, replace(settings, seed=1)).network.state_dict()
    assert not torch.equal(first['head.2.weight'], other['head.2.weight'])


def test_held_out_frames_are_blocks_as_long_as_another_visit_is_away():
    # Two walks straight ahead: 400 steps of 2 cm, then 100 steps of 10 cm.
    poses = np.tile(np.eye(4), (500, 1, 1))
    poses[:400, 0, 3] = 0.02 * np.arange(400)
    poses[400:, 0, 3] = 0.1 * np.arange(100)
    sequences = ['slow'] * 400 + ['fast'] * 100
    mask = held_out_blocks(poses, sequences, 0.1)
    for name, per_block in (('slow', 25), ('fast', 5)):
        inside = mask[[s == name for s in sequences]]
        edges = np.diff(inside.astype(int))
        assert (edges == 1).sum() == 2 and (edges == -1).sum() == 2
        assert inside.sum() == pytest.approx(2 * per_block, abs=1)
    assert not held_out_blocks(poses, sequences, 0.0).any()
    still = held_out_blocks(np.tile(np.eye(4), (10, 1, 1)), ['a'] * 10, 0.1)
    assert still.sum() == 5


def test_fewer_images_than_a_batch_is_a_sentence(cache, sequences):
    with pytest.raises(TrainingError, match='--batch'):
        train(cache, sequences, replace(SMALL, batch=64))


def test_the_batch_that_is_advised_works(cache, sequences):
    one = replace(
        cache,
        **{
            name: getattr(cache, name)[:1]
            for name in ('images', 'world_T_camera', 'depth', 'points', 'depth_range')
        },
    )
    with pytest.raises(TrainingError, match='use --batch 1 or less'):
        train(one, sequences[:1], replace(SMALL, batch=2))
    assert train(one, sequences[:1], replace(SMALL, batch=1, epochs=1)).recipe['images'] == 1


@pytest.mark.parametrize('loss', ['local_homography', 'global_homography', 'geometric'])
def test_depth_that_is_empty_everywhere_is_named_before_training(loss, cache, sequences):
    empty = replace(
        cache,
        points=np.full_like(cache.points, np.nan),
        depth_range=np.full_like(cache.depth_range, np.nan),
        global_depth_range=None,
    )
    with pytest.raises(TrainingError, match='none of the .* shows depth .* --loss'):
        Trainer(empty, sequences, replace(SMALL, loss=LossSettings(loss)))
    if loss != 'geometric':
        by_hand = LossSettings(loss, depth_range=(1, 4))
        train(empty, sequences, replace(SMALL, loss=by_hand, epochs=1))


def test_divergence_is_a_sentence(cache, sequences):
    with pytest.raises(TrainingError, match='--learning-rate'):
        train(cache, sequences, replace(SMALL, learning_rate=1e30, epochs=50))


def test_a_failed_download_is_a_sentence_with_the_choices(cache, sequences, monkeypatch):
    from urllib.error import URLError

    def no_network(*args, **kwargs):
        raise URLError('no route to host')

    monkeypatch.setattr('torchvision.models.WeightsEnum.get_state_dict', no_network)
    with pytest.raises(WeightsError, match='--backbone-weights FILE .* --backbone-weights none'):
        train(cache, sequences, replace(SMALL, backbone_weights='imagenet'))


def test_without_a_network_training_starts_from_random_weights_and_says_so(
    cache, sequences, monkeypatch, capsys
):
    from urllib.error import URLError

    def no_network(*args, **kwargs):
        raise URLError('no route to host')

    monkeypatch.setattr('torchvision.models.WeightsEnum.get_state_dict', no_network)
    result = train(cache, sequences, replace(SMALL, backbone_weights='auto', epochs=1))
    assert result.recipe['backbone_weights'] == 'none (random start)'
    assert 'random start' in capsys.readouterr().err


def test_published_network_is_the_default():
    """MobileNetV2 1280 -> 2048 -> 7, in metres: [H], section IV."""
    network = PoseRegressor(NetworkSettings())
    assert [tuple(m.weight.shape) for m in network.head if hasattr(m, 'weight')] == [
        (2048, 1280),
        (7, 2048),
    ]
    assert network.translation_scale == 1 and not network.translation_mean.any()
    paper = load_preset('paper')
    assert (paper.epochs, paper.batch, paper.learning_rate) == (5000, 64, 1e-4)
    assert paper.views is None and not paper.normalize_translation and paper.schedule == 'constant'


def test_presets_and_their_errors(tmp_path):
    assert load_preset('fast').views.sources >= 2
    with pytest.raises(SettingsError, match='paper'):
        load_preset('nonsense')
    file = tmp_path / 'mine.yaml'
    file.write_text('epochs: 3\nbath: 4\n')
    with pytest.raises(SettingsError, match="unknown setting 'bath'"):
        load_preset(str(file))
    file.write_text('epochs: -3\n')
    with pytest.raises(SettingsError, match='epochs'):
        load_preset(str(file))
    for damage in ('loss: {name: posenet} # caf\xe9'.encode('latin-1'), b'minutes: 2001-99-99'):
        file.write_bytes(damage)
        with pytest.raises(SettingsError, match='mine.yaml is not YAML'):
            load_preset(str(file))


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('seed', -1), ('seed', 2**63), ('geometric_warmup', 1), ('geometric_warmup', np.nan),
        ('minutes', np.nan), ('minutes', np.inf), ('learning_rate', np.inf),
        ('views.sigma_m', np.inf), ('views.ramp', np.inf),
        pytest.param('learning_rate', 10**400, id='learning_rate-10^400'),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(name, value):
    with pytest.raises(SettingsError, match=name.split('.')[-1]):
        SMALL.with_values({name: value})


def test_dataset_to_scene_file_to_evaluation(dataset, tmp_path):
    built = build_scene(dataset, replace(SMALL, epochs=3), 'room', 'a test')
    path = tmp_path / 'room.scene'
    built.scene.save(path)
    scene = SceneModel.load(path)
    assert scene.header.recipe['command'] == 'a test'
    assert len(scene.train_world_T_camera) == len(dataset.train)
    result = evaluate(Relocalizer(scene, 'cpu'), dataset.test)
    summary = result.summary()
    assert summary['frames'] == len(dataset.test)
    assert set(summary['baselines']) == {'retrieval', 'mean_pose'}
    # The mean pose baseline by hand: distances of the test cameras to the mean training camera.
    mean = scene.train_world_T_camera[:, :3, 3].mean(0)
    distances = [np.linalg.norm(s.world_T_camera[:3, 3] - mean) for s in dataset.test]
    assert summary['baselines']['mean_pose']['median_position_m'] == pytest.approx(
        np.median(distances)
    )


def test_retrieval_finds_the_training_images_themselves(dataset):
    built = build_scene(dataset, replace(SMALL, epochs=1), 'room', '')
    summary = evaluate(Relocalizer(built.scene, 'cpu'), dataset.train[:6]).summary()
    assert summary['baselines']['retrieval']['median_position_m'] == 0.0


@pytest.mark.parametrize('views', [None, ViewSettings(sources=2)])
def test_a_cache_on_the_device_gives_the_same_batches(cache, views):
    """The code that keeps all images on a GPU, here on the CPU."""
    index, found = torch.tensor([3, 0, 17, 5]), []
    for resident in (False, True):
        batches = Batches(cache, torch.device('cpu'), views, resident)
        found.append(batches.batch(index, 1.0, torch.Generator().manual_seed(2)))
    (image, target), (again, target_again) = found
    assert torch.equal(image, again)
    assert image.shape == (4, 3, 48, 64)
    for one, other in zip(target, target_again, strict=True):
        assert torch.equal(one, other)


class _Copies(TorchDispatchMode):
    """Notes what is copied to another device, and what a GPU would make the host wait for."""

    def __init__(self):
        super().__init__()
        self.awaited, self.unawaited = [], 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {x.device.type for x in args if isinstance(x, torch.Tensor)}
        name, to = str(call), kwargs.get('device')
        if name.startswith('aten._to_copy') and to is not None and devices != {to.type}:
            if kwargs.get('non_blocking'):
                self.unawaited += 1
            else:
                self.awaited.append(name)
        elif 'meta' in devices and ('linalg' in name or 'lift_fresh' in name):
            self.awaited.append(name)
        return call(*args, **kwargs)


@pytest.mark.parametrize('views', [None, ViewSettings(sources=2, noise=0)])
@pytest.mark.parametrize('resident', [False, True])
def test_a_batch_reaches_the_device_in_few_copies_that_nobody_waits_for(cache, views, resident):
    """On the device of tensors without data: reading one back, or mixing devices, would raise."""
    batches = Batches(cache, torch.device('meta'), views, resident)
    normalize(torch.zeros(1, 2, 2, 3, dtype=torch.uint8, device='meta'))  # keeps its constants
    with _Copies() as copies:
        image, target = batches.batch(torch.tensor([3, 0, 5]), 1.0, torch.Generator())
    assert image.device.type == target.c_q_w.device.type == 'meta' and image.shape == (3, 3, 48, 64)
    assert copies.awaited == []
    assert copies.unawaited <= (5 if resident else 8)


def test_images_stay_on_a_gpu_that_keeps_three_quarters_free(cache, monkeypatch):
    """A batch of 64 takes up to 12 GB of it."""
    found = []

    class Rows:
        def __init__(self, array, device, resident):
            found.append(resident)

    monkeypatch.setattr('training.batches._Rows', Rows)
    monkeypatch.setattr('torch.tensor', lambda *args, **kwargs: None)
    arrays = (cache.images, cache.depth, cache.points, cache.depth_range)
    size = sum(array.nbytes for array in arrays)
    for free in (4 * size, 4 * size + 4):
        monkeypatch.setattr('torch.cuda.mem_get_info', lambda device, free=free: (free, 10 * free))
        Batches(cache, torch.device('cuda', 0), None)
    assert found == [False] * 4 + [True] * 4


def test_too_little_memory_on_a_gpu_is_a_sentence(cache, sequences, monkeypatch):
    text = 'CUDA out of memory. GPU 0 has a total capacity of 8 GiB of which 9 MiB is free.'

    def full(*arguments):
        raise torch.cuda.OutOfMemoryError(f'{text} Including non-PyTorch memory, this process has')

    ways_out = r'9 MiB is free\); use --batch 4, --precision bfloat16.* --device cpu.*--resume'
    for place in ('training.learner.Learner.step', 'training.trainer.Batches'):
        with monkeypatch.context() as context, pytest.raises(TrainingError, match=ways_out):
            context.setattr(place, full)
            train(cache, sequences, SMALL)


def test_the_curves_are_drawn_now_and_then_and_at_the_end(cache, sequences, tmp_path, monkeypatch):
    drawn = []
    curves = run_folder._curves
    monkeypatch.setattr(run_folder, '_SECONDS_BETWEEN_CURVES', 600)
    monkeypatch.setattr(run_folder, '_curves', lambda h: drawn.append(len(h)) or curves(h))
    settings = replace(SMALL, validate_every=1, epochs=4)
    train(cache, sequences, settings, tmp_path)
    assert drawn == [1, 4]
    one_epoch = Trainer._one_epoch

    def interrupted(trainer, *arguments):
        if trainer.epoch == 7:
            raise KeyboardInterrupt
        return one_epoch(trainer, *arguments)

    monkeypatch.setattr(Trainer, '_one_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(cache, sequences, replace(settings, epochs=9), tmp_path, resume=True)
    assert drawn == [1, 4, 5, 7]


def test_the_shares_of_a_batch_are_the_batch(cache):
    """What two processes draw together is what one draws alone."""
    batches = Batches(cache, torch.device('cpu'), ViewSettings(sources=3))
    index = torch.tensor([3, 0, 17, 5, 9, 22])
    shares = (slice(None), slice(0, 3), slice(3, 6))
    whole, first, second = (
        batches.batch(index, 1.0, torch.Generator().manual_seed(2), share) for share in shares
    )
    torch.testing.assert_close(torch.cat([first[0], second[0]]), whole[0])
    for parts in zip(whole[1], first[1], second[1], strict=True):
        torch.testing.assert_close(torch.cat(parts[1:]), parts[0])


def test_a_run_in_minutes_ends_validated(cache, sequences):
    settings = replace(SMALL, minutes=0.03, epochs=1, validate_every=10**6)
    result = train(cache, sequences, settings)
    assert [row['epoch'] for row in result.history] == [result.recipe['epochs']]


def test_a_finished_run_resumes_to_its_result_and_can_be_prolonged(cache, sequences, tmp_path):
    settings = replace(SMALL, epochs=2)
    first = train(cache, sequences, settings, tmp_path)
    again = train(cache, sequences, settings, tmp_path, resume=True)
    assert again.history == first.history
    longer = train(cache, sequences, replace(settings, epochs=4), tmp_path, resume=True)
    assert longer.recipe['epochs'] == 4 and longer.history[: len(first.history)] == first.history
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)


def test_a_refused_resume_leaves_the_run_as_it_was(cache, sequences, tmp_path):
    train(cache, sequences, replace(SMALL, epochs=1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match='began with seed=0, now it is 3'):
        train(cache, sequences, replace(SMALL, epochs=1, seed=3), tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_run_never_goes_on_from_the_one_before(
    cache, sequences, tmp_path, monkeypatch, capsys
):
    """Even if it is stopped before its first checkpoint. That of the one before is kept."""
    settings = replace(SMALL, epochs=2)
    train(cache, sequences, settings, tmp_path)
    former = (tmp_path / 'checkpoint.pt').read_bytes()
    assert 'new run' not in capsys.readouterr().err

    def stopped(*arguments):
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(Trainer, '_one_epoch', stopped)
            train(cache, sequences, replace(settings, seed=1), tmp_path)
    assert 'kept there as checkpoint.before.pt' in capsys.readouterr().err
    assert (tmp_path / 'checkpoint.before.pt').read_bytes() == former
    result = train(cache, sequences, replace(settings, seed=1), tmp_path, resume=True)
    assert result.recipe['settings']['seed'] == 1 and result.recipe['epochs'] == 2
    # Whoever only forgot --resume goes on from there.
    (tmp_path / 'checkpoint.before.pt').replace(tmp_path / 'checkpoint.pt')
    assert train(cache, sequences, settings, tmp_path, resume=True).recipe['epochs'] == 2


def test_a_run_that_resumes_with_less_than_it_has_spent_ends_validated(
    cache, sequences, tmp_path, monkeypatch
):
    settings = replace(SMALL, validate_every=50)
    one_epoch = Trainer._one_epoch

    def interrupted(trainer, *arguments):
        if trainer.epoch == 2:
            raise KeyboardInterrupt
        return one_epoch(trainer, *arguments)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Trainer, '_one_epoch', interrupted)
        train(cache, sequences, settings, tmp_path)
    result = train(cache, sequences, replace(settings, epochs=1), tmp_path, resume=True)
    assert [row['epoch'] for row in result.history] == [result.recipe['epochs']]


def moved(samples, metres):
    shift = np.zeros((4, 4))
    shift[0, 3] = metres
    return [replace(s, world_T_camera=s.world_T_camera + shift) for s in samples]


def test_cameras_far_from_the_origin_are_refused(dataset):
    far = replace(dataset, train=moved(dataset.train, 5e6))
    with pytest.raises(DatasetError, match='5000 km from the origin .* [Ss]ubtract one constant'):
        build_scene(far, SMALL, 'room', '')
    with pytest.raises(DatasetError, match='5000 km from the origin'):
        with_landmarks(None, far.train, MappingSettings())


def test_images_10_km_away_and_1_cm_apart_are_not_those_of_the_scene(dataset):
    poses = [sample.world_T_camera for sample in moved(dataset.train, 10_000)]
    scene = SimpleNamespace(
        train_world_T_camera=np.array(poses), header=SimpleNamespace(name='room')
    )
    with pytest.raises(DatasetError, match='not the training images of scene room'):
        with_landmarks(scene, moved(dataset.train, 10_000.01), MappingSettings())


def test_no_tensor_is_read_back_within_an_epoch(cache, sequences, monkeypatch):
    """On a GPU each such read would wait for all that was computed so far."""
    trainer = Trainer(cache, sequences, replace(SMALL, views=ViewSettings(), ema=0.9))
    reads = []
    for name in ('item', '__bool__', '__float__', 'cpu', 'nonzero'):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, method=method, name=name):
            reads.append(name)
            return method(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    with tqdm(disable=True) as bar:
        for steps in (1, 4):
            trainer.train_index = trainer.train_index[: steps * SMALL.batch]
            reads.clear()
            trainer._one_epoch(0.5, bar)
            counts.append(sorted(reads))
            trainer.train_index = torch.arange(40)
    assert counts[0] == counts[1]
