"""The pages in a real browser: they draw, they answer clicks, they fetch nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_reloc.geometry import pose_matrix
from training.evaluate import Evaluation, Frame
from training.report import comparison_page, html_page, read_run

HOSTILE = '</script><img src=x onerror=hacked=1><b>'
COUNT = 24


def frames(status='REFINED', spread=0.05, seed=0):
    """A walk round a corner; every eighth image got no answer."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(COUNT):
        angle = 0.15 * i
        R = Rotation.from_euler('y', angle).as_matrix()
        truth = pose_matrix(R, [2 * np.sin(angle), 0.02 * i, 2 * np.cos(angle)])
        estimate = truth @ pose_matrix(
            Rotation.from_rotvec(rng.normal(size=3) * spread).as_matrix(),
            rng.normal(size=3) * spread,
        )
        lost = i % 8 == 7
        result.append(
            Frame(
                f'walk/{i:03d} {HOSTILE}',
                i / 5,
                truth,
                None if lost else estimate,
                None if lost else np.eye(6) * spread**2,
                'LOST' if lost else status,
                ('blurred',) if lost else (),
                None if lost else 0.02 + 0.001 * i,
            )
        )
    return result


def picture(index):
    return np.full((30, 40, 3), 10 * index, np.uint8)


@pytest.fixture
def report(tiny_scene, tmp_path):
    """The page of a run, with hostile names in every place."""
    header = replace(tiny_scene.header, name=HOSTILE, recipe={'dataset': HOSTILE})
    walk = frames()
    errors = (np.linspace(0.1, 3, COUNT), np.linspace(1, 90, COUNT))
    images = {f.name: lambda i=i: picture(i) for i, f in enumerate(walk) if i != 5}
    evaluation = Evaluation(walk, {'retrieval': errors})
    page = html_page(HOSTILE, evaluation, replace(tiny_scene, header=header), images)
    path = tmp_path / 'report.html'
    path.write_text(page)
    return path


def is_drawn(page, canvas):
    """Whether a canvas shows more than its background."""
    return page.evaluate(
        """(id) => {
            const canvas = document.getElementById(id);
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.data.buffer)).size;
        }""",
        canvas,
    ) > 20  # fmt: skip


def wait_until_drawn(page, canvas='view'):
    page.wait_for_function(f"() => document.getElementById('{canvas}').dataset.drawn >= 1")


def test_a_report_draws_and_fetches_nothing(open_page, report):
    page = open_page(report.as_uri())
    wait_until_drawn(page)
    assert is_drawn(page, 'view')
    assert [url for url in page.requests if not url.startswith('data:')] == [report.as_uri()]
    charts = (
        'position', 'rotation', 'cumulative-position', 'cumulative-rotation', 'calibration',
        'latency',
    )  # fmt: skip
    for chart in charts:
        assert page.locator(f'#{chart} svg').count() == 1, chart
        assert page.locator(f'#{chart} svg :is(path, rect, circle)').count() > 0, chart
    assert page.locator('#position circle.pick').count() == COUNT - 3
    assert page.locator('#position rect.mark').count() == 3
    assert page.locator('#worst .frame').count() == 10
    assert page.locator('#silent .frame').count() == 3


def test_names_from_files_are_shown_and_not_run(open_page, report):
    page = open_page(report.as_uri())
    wait_until_drawn(page)
    page.locator('#slider').fill('0')
    assert page.inner_text('#name') == f'walk/000 {HOSTILE}'
    assert page.inner_text('h1') == HOSTILE
    assert page.evaluate('typeof hacked') == 'undefined'
    assert page.locator('img:not([src^="data:image/jpeg"])').count() == 0


def test_a_click_on_an_answer_shows_its_picture(open_page, report):
    page = open_page(report.as_uri())
    wait_until_drawn(page)
    targets = page.evaluate("document.getElementById('view').view.targets")
    assert len(targets) == COUNT
    box = page.locator('#view').bounding_box()
    for wanted in (2, 12, 20):
        target = next(t for t in targets if t['id'] == wanted)
        alone = [t for t in targets if np.hypot(t['x'] - target['x'], t['y'] - target['y']) < 1e-6]
        assert len(alone) == 1
        page.mouse.click(box['x'] + target['x'], box['y'] + target['y'])
        assert page.inner_text('#name').startswith(f'walk/{wanted:03d}')
        grey = page.evaluate(
            """() => {
                const image = document.querySelector('#picture img');
                const canvas = document.createElement('canvas');
                return image.decode().then(() => {
                    canvas.getContext('2d').drawImage(image, 0, 0);
                    return canvas.getContext('2d').getImageData(3, 3, 1, 1).data[0];
                });
            }"""
        )
        assert grey == pytest.approx(10 * wanted, abs=2)


def test_frames_are_chosen_in_charts_with_the_slider_and_the_buttons(open_page, report):
    page = open_page(report.as_uri())
    wait_until_drawn(page)
    page.locator('#position circle.pick').nth(0).click()
    assert page.inner_text('#name').startswith('walk/000')
    page.click('#after')
    assert page.inner_text('#name').startswith('walk/001')
    page.locator('#slider').fill('5')
    assert page.inner_text('#picture') == 'no picture kept'
    page.locator('#rotation rect.mark').nth(1).click()
    assert page.inner_text('#name').startswith('walk/015')
    facts = page.inner_text('#facts')
    assert 'LOST' in facts and 'the image is blurred' in facts and 'error' not in facts
    page.check('input[value="along"]')
    assert 'metres along the true path' in page.text_content('#position')
    page.locator('#worst .frame').nth(0).click()
    worst = max(frames(), key=lambda f: f.error()[0] if f.estimate is not None else -1)
    assert page.inner_text('#name') == worst.name


def test_dragging_turns_the_view_and_a_button_looks_from_above(open_page, report):
    page = open_page(report.as_uri())
    wait_until_drawn(page)
    look = "(({yaw, pitch}) => [yaw, pitch])(document.getElementById('view').view)"
    before = page.evaluate(look)
    box = page.locator('#view').bounding_box()
    page.mouse.move(box['x'] + 100, box['y'] + 100)
    page.mouse.down()
    page.mouse.move(box['x'] + 160, box['y'] + 130, steps=4)
    page.mouse.up()
    after = page.evaluate(look)
    assert after[0] != before[0] and after[1] != before[1]
    page.click('#above')
    # From above, what lies further up in the picture lies further along the second axis.
    assert page.evaluate(look) == pytest.approx([0, np.pi / 2])
    page.click('#reset')
    assert page.evaluate(look) == pytest.approx(before)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_it_fits_and_can_be_read(open_page, report, width, scheme):
    page = open_page(report.as_uri(), width, scheme)
    wait_until_drawn(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    colours = page.evaluate(
        """() => ['--ink', '--soft', '--card', '--page'].map(
            (name) => getComputedStyle(document.body).getPropertyValue(name).trim())"""
    )
    ink, soft, *grounds = (luminance(colour) for colour in colours)
    assert (ink > grounds[0]) == (scheme == 'dark')
    for ground in grounds:
        assert contrast(ink, ground) >= 7 and contrast(soft, ground) >= 4.5  # WCAG 2.2


def luminance(colour):
    """Relative luminance of '#rrggbb' (WCAG 2.2)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(a, b):
    low, high = sorted((a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('kind', ['no truth', 'no answer', 'one frame'])
def test_runs_that_lack_something_open_without_errors(open_page, tiny_scene, tmp_path, kind):
    walk = frames()
    if kind == 'no truth':
        walk = [replace(f, truth=None, covariance_66=None) for f in walk]
    elif kind == 'no answer':
        walk = [replace(f, estimate=None, latency_s=None, status='no answer') for f in walk]
    else:
        walk = walk[:1]
    path = tmp_path / 'report.html'
    path.write_text(html_page('t', Evaluation(walk), tiny_scene, {}))
    page = open_page(path.as_uri())
    wait_until_drawn(page)
    assert is_drawn(page, 'view')
    page.click('#after')


def test_a_comparison_draws_every_run(open_page, tmp_path):
    paths = []
    for name, spread, status in (('fine', 0.02, 'REFINED'), (HOSTILE, 0.3, 'COARSE')):
        values = {'title': name, 'scene': {'loss': name}}
        evaluation = Evaluation(frames(status, spread))
        paths.append(tmp_path / f'{len(paths)}.json')
        paths[-1].write_text(json.dumps(values | evaluation.to_json()))
    path = tmp_path / 'compare.html'
    path.write_text(comparison_page([read_run(p) for p in paths]))
    page = open_page(path.as_uri(), width=390)
    wait_until_drawn(page)
    assert is_drawn(page, 'view')
    assert page.requests == [path.as_uri(), *[r for r in page.requests if r.startswith('data:')]]
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    assert page.evaluate('typeof hacked') == 'undefined'
    assert page.locator('#position circle').count() == 2 * (COUNT - 3)
    page.locator('#position circle.pick:not(.selected)').nth(0).click()
    assert page.inner_text('#name').startswith('walk/001')
    facts = page.inner_text('#facts')
    assert 'REFINED' in facts and 'COARSE' in facts and HOSTILE in facts
