"""The web server: who may ask, how much, and in what order. Needs aiohttp (extra `web`)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

from aiohttp import web

from pose_reloc.errors import CameraError, DatasetError, SettingsError
from training.report.shell import asset
from training.serve.localizer import Localizer
from training.serve.pictures import FORMATS, PictureError, PictureTooLargeError

MAX_BYTES = 20_000_000  # of an upload
_MAX_WAITING = 8  # uploads that are held in memory at the same time
_UPLOAD_SECONDS = 30.0

_LOCALIZER = web.AppKey('localizer', Localizer)
_ANSWERS = web.AppKey('answers', ThreadPoolExecutor)
_HOST = web.AppKey('host', str)
_WAITING = web.AppKey('waiting', asyncio.Semaphore)

_ASSETS = {
    'page.css': 'text/css',
    'serve.css': 'text/css',
    'view3d.js': 'text/javascript',
    'charts.js': 'text/javascript',
    'serve.js': 'text/javascript',
}
_HEADERS = {
    'Content-Security-Policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(self), microphone=(), geolocation=()',
    'Cache-Control': 'no-store',
}


def create_app(localizer: Localizer, host: str = '127.0.0.1') -> web.Application:
    """The application.

    Args:
        localizer: that answers; it is called by one thread only.
        host: name or address under which the server is started.
    """
    app = web.Application(middlewares=[_guard], client_max_size=MAX_BYTES)
    app[_LOCALIZER], app[_HOST] = localizer, host
    # One thread: one picture is decoded and answered at a time, the others wait for their turn.
    app[_ANSWERS] = ThreadPoolExecutor(max_workers=1, thread_name_prefix='localize')
    app[_WAITING] = asyncio.Semaphore(_MAX_WAITING)
    app.add_routes(
        [
            web.get('/', _index),
            web.get('/assets/{name}', _asset),
            web.get('/scene.json', _scene),
            web.get(r'/keyframe/{number:\d{1,9}}.jpg', _keyframe),
            web.post('/localize', _localize),
        ]
    )
    app.on_cleanup.append(_close)
    return app


def serve(localizer: Localizer, host: str, port: int) -> None:
    """Serves until Ctrl-C.

    Args:
        localizer: that answers.
        host: name or address to listen at.
        port: 0 takes a free one.

    Raises:
        SettingsError: nobody can listen there.
    """
    with contextlib.closing(_listen(host, port)) as listening:
        shown = f'[{host}]' if ':' in host else host
        print(f'open http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends it)', flush=True)
        app = create_app(localizer, host)
        web.run_app(app, sock=listening, print=None, access_log=None)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == 'localhost'


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise SettingsError(
            f'cannot listen at {host}:{port}: {reason}; choose another --host or --port'
        ) from error
    return listening


@web.middleware
async def _guard(request: web.Request, handler) -> web.StreamResponse:
    """Refuses other sites, turns every error into JSON, and adds the headers."""
    try:
        _check_origin(request)
        response = await handler(request)
    except web.HTTPException as error:
        text = error.text if isinstance(error, web.HTTPClientError) else error.reason
        response = web.json_response({'error': text}, status=error.status)
    response.headers.update(_HEADERS)
    return response


def _check_origin(request: web.Request) -> None:
    """A page of another site may not use this server through a visitor's browser.

    Raises:
        web.HTTPForbidden: the request comes under a foreign name (DNS rebinding: a site's own name
            is made to lead here) or from a foreign page.
    """
    if not _own_name(_host_name(request.host), request.app[_HOST]):
        raise web.HTTPForbidden(text='this name does not belong to this server')
    origin = request.headers.get('Origin')
    if origin is not None and origin != f'{request.scheme}://{request.host}':
        raise web.HTTPForbidden(text='another page may not ask this server')


def _own_name(name: str, host: str) -> bool:
    """An address cannot be rebound: only names are checked."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name.lower() in {'localhost', host.lower(), socket.gethostname().lower()}


def _host_name(host: str) -> str:
    """Host header without its port and brackets."""
    if host.startswith('['):
        return host[1:].partition(']')[0]
    return host.partition(':')[0]


async def _index(_: web.Request) -> web.Response:
    return web.Response(text=_own_asset('index.html'), content_type='text/html')


async def _asset(request: web.Request) -> web.Response:
    name = request.match_info['name']
    if name not in _ASSETS:
        raise web.HTTPNotFound(text='there is no such file')
    text = _own_asset(name) if name.startswith('serve.') else asset(name)
    return web.Response(text=text, content_type=_ASSETS[name])


def _own_asset(name: str) -> str:
    return (files('training.serve') / 'assets' / name).read_text(encoding='utf-8')


async def _scene(request: web.Request) -> web.Response:
    return web.json_response(request.app[_LOCALIZER].describe())


async def _keyframe(request: web.Request) -> web.Response:
    number = int(request.match_info['number'])
    try:
        data = await _in_turn(request, request.app[_LOCALIZER].keyframe_jpeg, number)
    except DatasetError as error:
        raise web.HTTPNotFound(text=str(error)) from error
    if data is None:
        raise web.HTTPNotFound(text='there is no such keyframe')
    return web.Response(body=data, content_type='image/jpeg')


async def _localize(request: web.Request) -> web.Response:
    """Body: the picture. Query: fx in pixels, or fov in degrees."""
    if request.content_type not in FORMATS:
        raise web.HTTPUnsupportedMediaType(text='only JPEG, PNG and WebP pictures are answered')
    focal_px, fov_deg = (_number(request, name) for name in ('fx', 'fov'))
    if request.app[_WAITING].locked():
        response = {'error': 'too many pictures are waiting; try again'}
        return web.json_response(response, status=503, headers={'Retry-After': '2'})
    async with request.app[_WAITING]:
        data = await _body(request)
        try:
            answer = request.app[_LOCALIZER].answer
            return web.json_response(await _in_turn(request, answer, data, focal_px, fov_deg))
        except PictureTooLargeError as error:
            raise web.HTTPRequestEntityTooLarge(MAX_BYTES, text=str(error)) from error
        except (PictureError, CameraError) as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error


def _number(request: web.Request, name: str) -> float | None:
    text = request.query.get(name)
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    raise web.HTTPBadRequest(text=f'{name} is not a number')


async def _body(request: web.Request) -> bytes:
    try:
        return await asyncio.wait_for(request.read(), _UPLOAD_SECONDS)
    except asyncio.TimeoutError as error:
        raise web.HTTPRequestTimeout(text='the upload took too long') from error
    except web.HTTPRequestEntityTooLarge as error:
        text = f'the file is larger than {MAX_BYTES // 1_000_000} MB'
        raise web.HTTPRequestEntityTooLarge(MAX_BYTES, text=text) from error


async def _in_turn(request: web.Request, function, *args):
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(request.app[_ANSWERS], function, *args)


async def _close(app: web.Application) -> None:
    app[_ANSWERS].shutdown(cancel_futures=True)
