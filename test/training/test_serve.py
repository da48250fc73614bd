"""The local page's server: what it answers, and what it refuses from whom."""

import asyncio
import io
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pose_reloc.camera import Camera
from pose_reloc.cli import main
from pose_reloc.errors import CameraError, DatasetError, SettingsError
from pose_reloc.geometry import pose_error, pose_matrix
from pose_reloc.relocalizer import Relocalizer
from training.datasets import open_dataset
from training.mapping import MappingSettings, build_landmarks
from training.serve import pictures
from training.serve.localizer import Localizer
from training.serve.pictures import Picture, PictureError, PictureTooLargeError, camera_of

pytest.importorskip('aiohttp', reason='aiohttp (extra web) is not installed')
test_utils = pytest.importorskip('aiohttp.test_utils')

from training.serve.app import MAX_BYTES, create_app, is_loopback, serve  # noqa: E402

MAP_T_SCENE = pose_matrix(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), [5.0, 6.0, 7.0])


@pytest.fixture(scope='module')
def samples(room):
    return open_dataset('7scenes', room).train[:10]


@pytest.fixture(scope='module')
def landmarks(samples):
    return build_landmarks(samples, MappingSettings())


@pytest.fixture
def scene(samples, landmarks, tiny_scene):
    """Ten images of the room; the network has learnt nothing, the landmarks are real."""
    camera = samples[0].camera
    header = replace(tiny_scene.header, camera=camera, network_camera=camera.scaled(80, 60))
    return replace(
        tiny_scene,
        header=header,
        train_world_T_camera=np.array([s.world_T_camera for s in samples]),
        start_features=np.tile(tiny_scene.start_features[:1], (len(samples), 1)),
        landmarks=landmarks,
        map_T_scene=MAP_T_SCENE,
    )


@pytest.fixture
def localizer(scene, samples):
    return Localizer(Relocalizer(scene, 'cpu'), samples)


def encoded(image, kind='PNG', **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


# --- what is answered ---


def test_a_picture_gets_its_place_in_the_map(localizer, samples):
    answer = localizer.answer(encoded(samples[4].load_image()), None, None)
    assert answer['status'] == 'REFINED'
    pose = np.vstack([np.reshape(answer['pose'], (3, 4)), [0, 0, 0, 1]])
    position, rotation = pose_error(pose, MAP_T_SCENE @ samples[4].world_T_camera)
    assert position < 0.02 and np.rad2deg(rotation) < 0.5
    assert answer['landmarks'] >= len(answer['matches']) > 0
    u, v = np.transpose(answer['matches'])
    assert u.max() <= 640 and v.max() <= 480


def test_the_matched_keyframe_sees_the_same_landmarks(localizer, samples):
    """Pixels of one landmark in both pictures look alike: the room is the same."""
    image = samples[4].load_image()
    keyframe = localizer.answer(encoded(image), None, None)['keyframe']
    frame = int(localizer.scene.landmarks.frames[keyframe['number']])
    assert keyframe['name'].endswith(samples[frame].image_path.name)
    np.testing.assert_allclose(
        np.reshape(keyframe['pose'], (3, 4)),
        (MAP_T_SCENE @ samples[frame].world_T_camera)[:3],
        atol=1e-4,
    )
    other = np.array(Image.open(io.BytesIO(localizer.keyframe_jpeg(keyframe['number']))))
    assert other.shape == (480, 640, 3)
    places = np.rint([keyframe['here'], keyframe['seen']]).astype(int)
    places = places[:, ((places >= 4) & (places < (636, 476))).all(axis=(0, 2))]
    patches = [
        [picture[v - 4 : v + 5, u - 4 : u + 5].mean(axis=(0, 1)) for u, v in here]
        for picture, here in zip((image, other), places)
    ]
    assert len(patches[0]) > 10
    same = np.abs(np.subtract(*patches)).mean()
    assert same < 0.5 * np.abs(np.subtract(patches[0], np.roll(patches[1], 7, axis=0))).mean()


def test_a_refused_picture_has_reasons_and_no_place(localizer):
    answer = localizer.answer(encoded(np.zeros((480, 640, 3), np.uint8)), None, None)
    assert answer['status'] == 'LOST' and answer['reasons'] == ['the image is too dark']
    assert 'pose' not in answer and 'keyframe' not in answer


def test_a_scene_without_landmarks_or_images(scene):
    bare = Localizer(Relocalizer(replace(scene, landmarks=None), 'cpu'))
    rng = np.random.default_rng(0)
    noise = encoded(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    answer = bare.answer(noise, None, None)
    assert answer['status'] in ('COARSE', 'LOST')
    assert bare.keyframe_jpeg(0) is None and bare.describe()['landmarks'] == []
    if answer['status'] == 'COARSE':
        assert answer['keyframe'] is None and answer['matches'] == []


def test_other_images_than_the_scene_was_made_from(scene, samples):
    with pytest.raises(DatasetError, match='not the training images'):
        Localizer(Relocalizer(scene, 'cpu'), samples[:5])


# --- what a picture may be ---


def exif_picture(size, focal_35mm, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = focal_35mm
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[: size[1] // 2, : size[0] // 2] = 255  # top left
    return encoded(image, 'JPEG', exif=exif)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_pictures_of_every_format(kind):
    image = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (48, 1, 3)) * 3
    picture = pictures.read_picture(encoded(image, kind))
    assert picture.focal_px is None
    assert np.abs(picture.image.astype(int) - image).mean() < 3
    grey = pictures.read_picture(encoded(image[..., 0], 'PNG'))
    np.testing.assert_array_equal(grey.image, image)


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped():
    grey = np.tile(np.arange(64, dtype=np.uint16) * 1024, (48, 1))
    picture = pictures.read_picture(encoded(grey))
    expected = np.repeat(np.round(grey / 257)[..., None], 3, axis=2)
    np.testing.assert_array_equal(picture.image, expected)


def test_a_phone_held_upright():
    """EXIF orientation 6: to be turned by 90 degrees clockwise; top left becomes top right."""
    picture = pictures.read_picture(exif_picture((64, 48), 26, orientation=6))
    assert picture.image.shape == (64, 48, 3)
    assert picture.image[5, -5].min() > 200 and picture.image[5, 5].max() < 50


def test_focal_length_of_exif():
    """A 36 mm wide film at 36 mm sees 53.13 degrees; so does a 3:2 picture of that equivalent."""
    picture = pictures.read_picture(exif_picture((300, 200), 36))
    camera, source = camera_of(picture, Camera(640, 480, 525, 525, 320, 240), None, None)
    assert 'EXIF' in source
    assert np.rad2deg(2 * np.arctan(150 / camera.fx)) == pytest.approx(53.13, abs=0.01)


def test_whose_camera_is_taken():
    own = Camera(640, 480, 525.0, 520.0, 320.0, 240.0, (0.1, 0, 0, 0))
    plain = Picture(np.zeros((480, 640, 3), np.uint8), None)
    assert camera_of(plain, own, None, None)[0] == own
    # The scene's own camera is calibrated; what EXIF says is rounded.
    assert camera_of(replace(plain, focal_px=100.0), own, None, None)[0] == own
    half = Picture(np.zeros((240, 320, 3), np.uint8), None)
    assert camera_of(half, own, None, None)[0] == own.scaled(320, 240)
    given, _ = camera_of(half, own, None, 90.0)
    assert (given.fx, given.fy) == pytest.approx((160, 160)) and given.is_pinhole
    assert camera_of(half, own, 321.0, None)[0].fx == 321.0
    wide = Picture(np.zeros((200, 640, 3), np.uint8), None)
    with pytest.raises(CameraError, match='give its focal length or field of view'):
        camera_of(wide, own, None, None)
    for focal, fov in ((-1.0, None), (float('nan'), None), (None, 0.0), (None, 180.0)):
        with pytest.raises(CameraError):
            camera_of(half, own, focal, fov)


@pytest.mark.parametrize(
    'data',
    [b'', b'not a picture', encoded(np.zeros((9, 9, 3), np.uint8), 'GIF'),
     encoded(np.full((64, 64, 3), 7, np.uint8), 'PNG')[:-30],
     encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), 'JPEG')[:900]],
    ids=['empty', 'text', 'gif', 'cut PNG', 'cut JPEG'],
)  # fmt: skip
def test_what_is_no_whole_picture(data):
    with pytest.raises(PictureError, match='JPEG, PNG or WebP'):
        pictures.read_picture(data)


def test_damaged_pictures_never_raise_anything_else():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 40, 3), np.uint8)
    for kind in ('JPEG', 'PNG', 'WEBP'):
        whole = np.frombuffer(encoded(image, kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            places = rng.integers(0, len(data), 4)
            data[places] = rng.integers(0, 255, 4)
            try:
                found = pictures.read_picture(data.tobytes()).image
            except PictureError:
                continue
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


def test_a_small_file_that_unfolds_to_many_pixels(monkeypatch):
    bomb = encoded(np.zeros((300, 300), np.uint8), 'PNG')
    assert len(bomb) < 1000
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 300 * 300 - 1)
    monkeypatch.setattr(pictures.ImageOps, 'exif_transpose', lambda _: pytest.fail('decoded'))
    with pytest.raises(PictureTooLargeError):
        pictures.read_picture(bomb)


# --- the server ---


class Slow:
    """Stands for a Localizer; remembers how many pictures it was given at the same time."""

    def __init__(self, seconds=0.0):
        self.seconds, self.now, self.most, self.threads = seconds, 0, 0, set()

    def answer(self, data, focal_px, fov_deg):
        self.now += 1
        self.most = max(self.most, self.now)
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        self.now -= 1
        if data == b'bad':
            raise PictureError('not a picture')
        if data == b'vast':
            raise PictureTooLargeError('too many pixels')
        return {'bytes': len(data), 'fx': focal_px, 'fov': fov_deg}

    def describe(self):
        return {'name': 'slow'}

    def keyframe_jpeg(self, number):
        return b'jpeg' if number == 3 else None


def ask(work, localizer=None):
    """Runs `await work(client)` against a server."""

    async def run():
        app = create_app(localizer or Slow())
        async with test_utils.TestClient(test_utils.TestServer(app)) as client:
            return await work(client)

    return asyncio.run(run())


def post(data, kind='image/jpeg', query='', headers=None):
    async def work(client):
        headers_ = {'Content-Type': kind} | (headers or {})
        response = await client.post(f'/localize{query}', data=data, headers=headers_)
        return response.status, await response.json()

    return ask(work)


def test_an_upload_is_answered():
    assert post(b'12345', query='?fov=70') == (200, {'bytes': 5, 'fx': None, 'fov': 70})


@pytest.mark.parametrize(
    ('data', 'kind', 'query', 'status', 'text'),
    [
        (b'bad', 'image/png', '', 422, 'not a picture'),
        (b'vast', 'image/png', '', 413, 'too many pixels'),
        (b'x', 'text/html', '', 415, 'only JPEG, PNG and WebP'),
        (b'x', 'image/svg+xml', '', 415, 'only JPEG, PNG and WebP'),
        (b'x', 'multipart/form-data', '', 415, 'only JPEG, PNG and WebP'),
        (b'x', 'image/webp', '?fx=wide', 400, 'fx is not a number'),
    ],
)
def test_what_is_refused(data, kind, query, status, text):
    assert post(data, kind, query)[0] == status
    assert text in post(data, kind, query)[1]['error']


def test_a_file_of_the_allowed_size_passes_and_a_larger_one_does_not():
    assert post(bytes(MAX_BYTES))[1]['bytes'] == MAX_BYTES
    status, answer = post(bytes(MAX_BYTES + 1))
    assert status == 413 and 'larger than 20 MB' in answer['error']


def test_two_pictures_at_once_are_answered_one_after_the_other():
    slow = Slow(0.05)

    async def work(client):
        headers = {'Content-Type': 'image/jpeg'}
        requests = [client.post('/localize', data=bytes(n), headers=headers) for n in (1, 2)]
        return [(await response.json())['bytes'] for response in await asyncio.gather(*requests)]

    assert ask(work, slow) == [1, 2]
    assert slow.most == 1 and len(slow.threads) == 1


def test_more_pictures_than_can_wait_are_turned_away():
    async def work(client):
        headers = {'Content-Type': 'image/jpeg'}
        requests = [client.post('/localize', data=b'x', headers=headers) for _ in range(20)]
        return [response.status for response in await asyncio.gather(*requests)]

    statuses = ask(work, Slow(0.1))
    assert set(statuses) == {200, 503} and statuses.count(200) >= 8


@pytest.mark.parametrize(
    ('headers', 'status'),
    [
        ({'Host': 'evil.example:8080'}, 403),
        ({'Host': '127.0.0.1.evil.example'}, 403),
        ({'Host': 'localhost:8080'}, 200),
        ({'Host': '[::1]:8080'}, 200),
        ({'Host': '192.168.1.5'}, 200),
        ({'Origin': 'http://evil.example'}, 403),
        ({'Origin': 'null'}, 403),
        ({'Host': 'localhost:8080', 'Origin': 'http://localhost:8080'}, 200),
        ({'Host': 'localhost:8080', 'Origin': 'http://localhost:8081'}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(headers, status):
    """A name that leads here by DNS rebinding, and requests that another page sends."""
    assert post(b'x', headers=headers)[0] == status


def test_every_answer_has_the_headers_and_none_shares_with_other_sites():
    async def work(client):
        paths = ('/', '/scene.json', '/assets/page.css', '/nowhere', '/keyframe/3.jpg')
        return [await client.get(path) for path in paths]

    for response in ask(work):
        assert "default-src 'none'" in response.headers['Content-Security-Policy']
        assert response.headers['X-Content-Type-Options'] == 'nosniff'
        assert 'Access-Control-Allow-Origin' not in response.headers


@pytest.mark.parametrize(
    ('path', 'status'),
    [
        ('/', 200),
        ('/assets/view3d.js', 200),
        ('/assets/serve.js', 200),
        ('/assets/index.html', 404),
        ('/assets/..%2f..%2fapp.py', 404),
        ('/assets/%2e%2e/app.py', 404),
        ('/keyframe/3.jpg', 200),
        ('/keyframe/4.jpg', 404),
        ('/keyframe/-1.jpg', 404),
        ('/keyframe/99999999999999999999.jpg', 404),
        ('/localize', 405),
    ],
)
def test_what_can_be_fetched(path, status):
    async def work(client):
        return (await client.get(path)).status

    assert ask(work) == status


# --- the command ---


def test_who_can_reach_a_host():
    assert all(is_loopback(host) for host in ('127.0.0.1', '127.9.9.9', '::1', 'localhost'))
    assert not any(is_loopback(host) for host in ('0.0.0.0', '::', '192.168.0.2', 'robot.local'))


def test_a_port_in_use_is_a_sentence():
    import socket

    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(SettingsError, match='choose another --host or --port'):
            serve(Slow(), '127.0.0.1', taken.getsockname()[1])


def test_command_line_mistakes(tiny_scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('training.serve.app.serve', lambda *_: pytest.fail('it serves'))
    path = tmp_path / 'tiny.scene'
    tiny_scene.save(path)
    for options, text in (
        (['--port', '70000'], '--port must lie in'),
        (['--images', 'chess'], 'expected KIND:DIR'),
        (['--images', '7scenes:nowhere'], 'no dataset at'),
        (['--option', 'every=2'], 'give --images too'),
        (['--images', '7scenes:.', '--option', 'every'], 'expected KEY=VALUE'),
    ):
        assert main(['serve', '--scene', str(path), *options]) == 2
        assert text in capsys.readouterr().err


def test_without_the_web_package_it_is_named(tiny_scene, tmp_path, capsys, monkeypatch):
    path = tmp_path / 'tiny.scene'
    tiny_scene.save(path)
    monkeypatch.setitem(sys.modules, 'aiohttp', None)
    monkeypatch.delitem(sys.modules, 'training.serve.app')
    assert main(['serve', '--scene', str(path)]) == 2
    assert 'pip install aiohttp pillow' in capsys.readouterr().err
