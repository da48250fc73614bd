"""The local page in a real browser: a picture is dropped, its place appears on the map."""

import asyncio
import contextlib
import io
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('aiohttp', reason='aiohttp (extra web) is not installed')

from aiohttp import web  # noqa: E402

from training.serve.app import create_app  # noqa: E402

HOSTILE = '<img src=x onerror=hacked=1>'
POSE = [1, 0, 0, 0.5, 0, 0, -1, 0.2, 0, 1, 0, 1.5]


class Answers:
    """Stands for a Localizer of a small square walk."""

    def __init__(self):
        self.asked = []

    def describe(self):
        square = [[0, 0, 1.5], [1, 0, 1.5], [1, 1, 1.5], [0, 1, 1.5]]
        return {
            'name': HOSTILE,
            'camera': [640, 480],
            'recipe': {'dataset': HOSTILE, 'images': '4 trained on'},
            'view': {'origin': [0.5, 0.5, 1.5], 'axes': np.eye(3).tolist()},
            'train': {'positions': square, 'steps': [0, 1, 2]},
            'landmarks': np.random.default_rng(0).uniform(-1, 2, (200, 3)).tolist(),
            'extent': 1.5,
        }

    def answer(self, data, focal_px, fov_deg):
        width, height = Image.open(io.BytesIO(data)).size
        self.asked.append((width, height, focal_px, fov_deg))
        common = {
            'size': [width, height], 'camera': 'that of the training images',
            'time_ms': 12.3, 'likeness': 0.4,
        }  # fmt: skip
        if width < 50:
            return common | {'status': 'LOST', 'reasons': [HOSTILE], 'landmarks': 0}
        return common | {
            'status': 'REFINED',
            'reasons': [],
            'landmarks': 3,
            'pose': POSE,
            'sigma': [0.012, 0.34],
            'ellipsoid': (0.1 * np.eye(3)).ravel().tolist(),
            'matches': [[1.0, 2.0], [30.0, 20.0], [50.0, 40.0]],
            'keyframe': {
                'number': 3, 'name': HOSTILE, 'pose': POSE, 'picture': True, 'size': [64, 48],
                'seen': [[3.0, 4.0], [20.0, 30.0]], 'here': [[1.0, 2.0], [30.0, 20.0]],
            },
        }  # fmt: skip

    def keyframe_jpeg(self, number):
        return encoded((64, 48), 'JPEG') if number == 3 else None


def encoded(size, kind='PNG'):
    buffer = io.BytesIO()
    Image.new('RGB', size, 'teal').save(buffer, kind)
    return buffer.getvalue()


@contextlib.contextmanager
def running(localizer):
    """The address of a server in a thread of its own."""
    loop, started, address = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        runner = web.AppRunner(create_app(localizer))
        await runner.setup()
        site = web.TCPSite(runner, '127.0.0.1', 0)
        await site.start()
        address.append(site._server.sockets[0].getsockname()[1])
        started.set()
        return runner

    def work():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(30)
    yield f'http://127.0.0.1:{address[0]}/'
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def address(answers):
    with running(answers) as address:
        yield address


def upload(page, size=(64, 48), name='a.png', mime='image/png', data=None):
    page.set_input_files('#file', {'name': name, 'mimeType': mime, 'buffer': data or encoded(size)})


def verdict(page, text):
    page.wait_for_function('(t) => document.getElementById("verdict").textContent === t', arg=text)


def test_an_uploaded_picture_shows_its_pose(open_page, address, answers):
    page = open_page(address)
    page.wait_for_function("() => document.getElementById('view').dataset.drawn >= 1")
    colours = """(id) => {
        const canvas = document.getElementById(id);
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.data.buffer)).size;
    }"""
    assert page.evaluate(colours, 'view') > 20 and page.evaluate(colours, 'top') > 20
    upload(page)
    verdict(page, 'REFINED')
    facts = page.inner_text('#facts')
    assert 'x 0.500, y 0.200, z 1.500 m' in facts
    assert '1.2 cm, 0.34°' in facts and '12 ms' in facts
    assert page.locator('#shown svg circle').count() == 3
    assert (
        page.locator('#here svg circle').count() == page.locator('#there svg circle').count() == 2
    )
    # The same landmark has the same colour in both pictures, and two have different ones.
    fills = [
        page.locator(f'#{where} svg circle').nth(i).evaluate('(c) => getComputedStyle(c).fill')
        for where in ('here', 'there')
        for i in (0, 1)
    ]
    assert fills[:2] == fills[2:] and fills[0] != fills[1]
    page.wait_for_function("() => document.querySelector('#there img')?.naturalWidth === 64")
    for canvas in ('view', 'top'):
        layers = f"[...document.getElementById('{canvas}').view.layers.keys()]"
        assert 'answer' in page.evaluate(layers)
    assert answers.asked == [(64, 48, None, None)]
    assert all(url.startswith((address, 'blob:', 'data:')) for url in page.requests)


def test_reasons_and_names_are_only_text(open_page, address):
    page = open_page(address)
    upload(page, (40, 30))
    verdict(page, 'LOST')
    assert page.inner_text('#words') == f'Refused: {HOSTILE}.'
    assert HOSTILE in page.inner_text('#scene')
    assert not page.is_visible('#keyframe')
    upload(page)
    verdict(page, 'REFINED')
    assert HOSTILE in page.inner_text('#keyframe-name')
    assert page.evaluate('typeof hacked') == 'undefined'


def test_a_given_field_of_view_is_sent(open_page, address, answers):
    page = open_page(address)
    page.click('summary')
    page.fill('#fov', '70.5')
    upload(page)
    verdict(page, 'REFINED')
    assert answers.asked == [(64, 48, None, 70.5)]


def test_what_is_no_picture_gets_a_sentence(open_page, address):
    page = open_page(address)
    upload(page, name='a.txt', mime='text/plain', data=b'hello')
    verdict(page, 'no answer')
    assert page.inner_text('#words') == 'only JPEG, PNG and WebP pictures are answered'
    assert page.inner_text('#shown') == 'no picture'
    # The browser itself notes the 415 in its console.
    assert all('415' in error for error in open_page.errors)
    open_page.errors.clear()


def test_a_dropped_picture_is_answered(open_page, address):
    page = open_page(address)
    page.wait_for_function("() => document.getElementById('scene').textContent.startsWith('Scene')")
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
            return transfer;
        }""",
        list(encoded((64, 48))),
    )
    page.dispatch_event('#drop', 'drop', {'dataTransfer': transfer})
    verdict(page, 'REFINED')


def test_the_camera_is_answered_again_and_again_until_it_is_stopped(open_page, address, answers):
    page = open_page(address)
    page.wait_for_function("() => document.getElementById('scene').textContent.startsWith('Scene')")
    page.click('#camera')
    verdict(page, 'REFINED')
    page.wait_for_function("() => document.getElementById('view').view.layers.get('answer')")
    while len(answers.asked) < 3:
        page.wait_for_timeout(50)
    assert answers.asked[0][:2] == (640, 480)
    page.click('#camera')
    assert page.inner_text('#camera') == 'use the camera'
    page.wait_for_timeout(300)
    count = len(answers.asked)
    page.wait_for_timeout(300)
    assert len(answers.asked) == count


@pytest.mark.parametrize('width', [1280, 390])
def test_it_fits(open_page, address, width):
    page = open_page(address, width)
    upload(page)
    verdict(page, 'REFINED')
    page.wait_for_function("() => document.querySelector('#there img')?.complete")
    assert page.evaluate('document.documentElement.scrollWidth') <= width
