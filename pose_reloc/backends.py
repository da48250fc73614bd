"""A scene's network behind one call, by the engine that is fastest here.

Every engine runs the graph of `network.ImageRegressor`, preparation of the image included, so that
their answers differ by rounding only. PyTorch runs it as it is, the others its conversion to ONNX
(`export.py`). An engine is imported when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from pose_reloc.errors import DeviceError, SceneError, SettingsError, install_hint
from pose_reloc.export import INPUT, OUTPUTS, NetworkSource, cache_folder
from pose_reloc.files import write_atomically
from pose_reloc.scene import SceneModel

PRECISIONS = ('float32', 'bfloat16', 'float16')
# How long the calls of the engines that are compared may take in all.
_MEASURE_SECONDS = 1.0
_MEASURE_ROUNDS = 15
_TF32_SWITCH = threading.Lock()


class Regression(NamedTuple):
    """What the network says of a batch of images, as numpy arrays.

    Attributes:
        w_t_c: camera centres in the world (B, 3), metres.
        c_q_w: world-to-camera quaternions (B, 4), wxyz, not normalised.
        distance: to the most similar training image (B, 1), see `network.most_similar`.
        similar: where the K most similar ones were taken (B, K, 7): `w_t_c` and unit `c_q_w`.
    """

    w_t_c: np.ndarray
    c_q_w: np.ndarray
    distance: np.ndarray
    similar: np.ndarray


class Backend:
    """An engine that holds a network: call it with uint8 RGB images (B, H, W, 3).

    For one caller at a time, and for the size of images that it was opened for.

    Attributes:
        name: of `BACKENDS`.
        device: a torch.device.
        precision: of `PRECISIONS`.
        choice: why this one, for people; empty where it was asked for by name.
    """

    name = ''
    package = 'torch'  # that must be installed
    devices = ('cpu', 'cuda')
    precisions = PRECISIONS
    quick = True  # to open: 'auto' tries it

    def __init__(self, source: NetworkSource, device, precision: str):
        self.device, self.precision, self.choice = device, precision, ''

    def __call__(self, image_BHW3: np.ndarray) -> Regression:
        raise NotImplementedError

    def __str__(self):
        choice = f' ({self.choice})' if self.choice else ''
        return f'{self.name}, {self.precision} on {self.device}{choice}'


class TorchBackend(Backend):
    """PyTorch, eager. Always there.

    On a GPU float32 is what it says: PyTorch's own default computes convolutions in TF32, which
    rounds to 10 bits and moves a regressed pose by a centimetre. For speed there is half precision.
    """

    name = 'torch'

    def __init__(self, source: NetworkSource, device, precision: str):
        import torch

        super().__init__(source, device, precision)
        module = source.module()
        if precision != 'float32':
            _lower(module.network, getattr(torch, precision))
        self._module = module.to(device, memory_format=torch.channels_last)
        exact = precision == 'float32' and device.type == 'cuda'
        self._arithmetic = _without_tf32 if exact else nullcontext

    def __call__(self, image_BHW3: np.ndarray) -> Regression:
        import torch

        with torch.inference_mode():
            image = torch.from_numpy(image_BHW3).to(self.device)
            with self._arithmetic():
                answer = self._module(image)
            return Regression(*(x.cpu().numpy() for x in answer))


class CompiledBackend(TorchBackend):
    """torch.compile; with CUDA graphs on a GPU. Compiling takes up to a minute."""

    name = 'compile'
    quick = False

    def __init__(self, source: NetworkSource, device, precision: str):
        import torch

        super().__init__(source, device, precision)
        nothing = np.zeros(source.shape, dtype=np.uint8)
        self(nothing)  # eager first: what is made once and kept is no part of the graph
        torch._dynamo.reset()  # the limit of recompilations counts the networks before this one
        mode = 'reduce-overhead' if device.type == 'cuda' else 'default'
        self._module = torch.compile(self._module, mode=mode)
        try:
            self(nothing)
        except Exception as error:  # no compiler, or one of the many kinds that it raises
            raise SettingsError(f'torch.compile does not work here: {first_line(error)}') from error


class CudaGraphBackend(TorchBackend):
    """PyTorch's kernels recorded once and launched together: launching is what takes the time."""

    name = 'cudagraph'
    devices = ('cuda',)

    def __init__(self, source: NetworkSource, device, precision: str):
        import torch

        super().__init__(source, device, precision)
        # Both ends of the copies stay where they are: a graph remembers addresses.
        self._sent = torch.zeros(source.shape, dtype=torch.uint8, pin_memory=True)
        self._image = self._sent.to(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.device(device), self._arithmetic():
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries choose kernels and allocate before they are recorded
                    self._joined()
            torch.cuda.current_stream(device).wait_stream(stream)
            # PyTorch's own stream for recording stays on the GPU of the first graph.
            with torch.cuda.graph(self._graph, stream=stream):
                self._answer = self._joined()

    def _joined(self):
        import torch

        # One copy back instead of four.
        return torch.cat([x.flatten(1) for x in self._module(self._image)], dim=1)

    def __call__(self, image_BHW3: np.ndarray) -> Regression:
        import torch

        with torch.inference_mode(), torch.cuda.device(self.device):
            self._sent.copy_(torch.from_numpy(image_BHW3))
            self._image.copy_(self._sent, non_blocking=True)
            self._graph.replay()
            answer = self._answer.cpu().numpy()
        w_t_c, c_q_w, distance, similar = np.split(answer, (3, 7, 8), axis=1)
        return Regression(w_t_c, c_q_w, distance, similar.reshape(len(answer), -1, 7))


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime, on the CPU or by its CUDA provider."""

    name = 'onnxruntime'
    package = 'onnxruntime'
    precisions = ('float32',)

    def __init__(self, source: NetworkSource, device, precision: str):
        import onnxruntime
        import torch

        super().__init__(source, device, precision)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while they wait starve the rest of the robot, and each other.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        provider, settings = self._provider()
        if provider not in onnxruntime.get_available_providers():
            raise SettingsError(f'this ONNX Runtime has no {provider}; choose another backend')
        self._session = onnxruntime.InferenceSession(
            source.onnx(), options, providers=[provider], provider_options=[settings]
        )
        if self._session.get_providers()[0] != provider:  # it falls back without a word
            raise SettingsError(
                f'ONNX Runtime cannot start its {provider}: its CUDA libraries do not fit'
            )

    def _provider(self) -> tuple[str, dict]:
        if self.device.type == 'cuda':
            # TF32: see TorchBackend.
            return 'CUDAExecutionProvider', {'device_id': self.device.index or 0, 'use_tf32': 0}
        return 'CPUExecutionProvider', {}

    def __call__(self, image_BHW3: np.ndarray) -> Regression:
        return Regression(*self._session.run(OUTPUTS, {INPUT: image_BHW3}))


class TensorRtBackend(OnnxRuntimeBackend):
    """TensorRT, by ONNX Runtime's provider. Building takes minutes; the result is kept.

    Its float32 is TF32 where the GPU has that, unless the environment says NVIDIA_TF32_OVERRIDE=0:
    the provider has no option for it.
    """

    name = 'tensorrt'
    devices = ('cuda',)
    precisions = ('float32', 'float16')
    quick = False

    def _provider(self) -> tuple[str, dict]:
        return 'TensorrtExecutionProvider', {
            'device_id': self.device.index or 0,
            'trt_fp16_enable': self.precision == 'float16',
            'trt_engine_cache_enable': True,
            'trt_engine_cache_path': str(cache_folder() / 'tensorrt'),
        }


class OpenVinoBackend(Backend):
    """OpenVINO, on the CPU.

    In half precision it rounds its answers too: bfloat16 knows 0.25 m at 50 m, which matters where
    translations are not normalised.
    """

    name = 'openvino'
    package = 'openvino'
    devices = ('cpu',)

    def __init__(self, source: NetworkSource, device, precision: str):
        import openvino
        import torch

        super().__init__(source, device, precision)
        hint = {'float32': 'f32', 'bfloat16': 'bf16', 'float16': 'f16'}[precision]
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(source.onnx()),
            'CPU',
            {
                'PERFORMANCE_HINT': 'LATENCY',
                'INFERENCE_PRECISION_HINT': hint,
                'INFERENCE_NUM_THREADS': torch.get_num_threads(),
                'ENABLE_CPU_PINNING': False,  # other programs use these cores too
            },
        )
        taken = compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()
        if taken != hint:
            raise SettingsError(
                f'OpenVINO computes in {taken} on this processor, not in {precision}; use float32'
            )
        self._request = compiled.create_infer_request()

    def __call__(self, image_BHW3: np.ndarray) -> Regression:
        self._request.infer({INPUT: image_BHW3})
        # The request keeps its memory for the next call.
        return Regression(*(self._request.get_tensor(name).data.copy() for name in OUTPUTS))


BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend
    for backend in (
        TorchBackend,
        CompiledBackend,
        CudaGraphBackend,
        OnnxRuntimeBackend,
        OpenVinoBackend,
        TensorRtBackend,
    )
}


def open_backend(
    scene: SceneModel,
    device: str = 'auto',
    precision: str = 'auto',
    backend: str = 'auto',
    batch: int = 1,
) -> Backend:
    """The network of a scene, ready to be called.

    Args:
        scene: see SceneModel.
        device: 'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', ...
        precision: of `PRECISIONS`, or 'auto': float32 on a CPU, float16 on a GPU.
        backend: of `BACKENDS`, or 'auto': the fastest of those that are installed and open in
            seconds, by a measurement of about a second that is kept for the next start.
        batch: images of a call.

    Raises:
        SettingsError: no such device, precision or backend here, or they do not go together.
        SceneError: the weights do not fit the network of the scene.
    """
    device = choose_device(device)
    precision = _choose_precision(precision, device)
    source = NetworkSource(scene, batch)
    if backend == 'auto':
        return _fastest(source, device, precision)
    if backend not in BACKENDS:
        raise SettingsError(
            f"unknown backend {backend!r}; choose 'auto' or one of {', '.join(BACKENDS)}"
        )
    problem = obstacle(backend, device, precision)
    if problem:
        raise SettingsError(f'backend {backend!r} {problem}')
    return BACKENDS[backend](source, device, precision)


def _fastest(source: NetworkSource, device, precision: str) -> Backend:
    names = [n for n, b in BACKENDS.items() if b.quick and not obstacle(n, device, precision)]
    path = cache_folder() / f'choice-{_circumstances(source, device, precision, names)}.json'
    seconds, failures = _read_choice(path, names), {}
    if seconds:
        opened, _ = _open_all([min(seconds, key=seconds.get)], source, device, precision)
    if not seconds or not opened:
        opened, failures = _open_all(names, source, device, precision)
        if not opened:
            raise failures['torch']
        seconds = _measure(opened, np.full(source.shape, 128, dtype=np.uint8))
        _write_choice(path, seconds)
    fastest = opened[min(opened, key=seconds.get)]
    ranking = sorted(seconds, key=seconds.get)
    fastest.choice = 'fastest of ' + ', '.join(f'{n} {1e3 * seconds[n]:.1f} ms' for n in ranking)
    for name, error in failures.items():
        fastest.choice += f'; {name} does not work here: {first_line(error)}'
    return fastest


def _open_all(names, source, device, precision) -> tuple[dict[str, Backend], dict[str, Exception]]:
    opened, failures = {}, {}
    for name in names:
        try:
            opened[name] = BACKENDS[name](source, device, precision)
        except SceneError:
            raise  # no other engine would do better
        except Exception as error:  # every engine has kinds of its own
            failures[name] = error
    return opened, failures


def _measure(backends: dict[str, Backend], image_BHW3: np.ndarray) -> dict[str, float]:
    """Seconds of the fastest call, taking turns.

    The choice is kept, so it must not depend on what else runs now; that only makes calls slower.
    """
    for backend in backends.values():
        backend(image_BHW3)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    start = time.perf_counter()
    for _ in range(_MEASURE_ROUNDS):
        for name, backend in backends.items():
            backend(image_BHW3)  # brings its own weights back into the caches
            before = time.perf_counter()
            backend(image_BHW3)
            seconds[name].append(time.perf_counter() - before)
        if time.perf_counter() - start > _MEASURE_SECONDS:
            break
    return {name: min(values) for name, values in seconds.items()}


def _circumstances(source: NetworkSource, device, precision: str, names: list[str]) -> str:
    """Hash of what the speed of the engines depends on."""
    import torch

    versions = [(name, _version(BACKENDS[name].package)) for name in names]
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else ''
    machine = [*platform.uname(), gpu, torch.get_num_threads()]
    text = json.dumps([source.key, str(device), precision, versions, machine])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_choice(path, names: list[str]) -> dict[str, float]:
    """Seconds by engine as measured before; empty if never, or if the file is damaged."""
    try:
        seconds = {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return seconds if set(seconds) <= set(names) else {}


def _write_choice(path, seconds: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(seconds).encode())
    except (OSError, SceneError):
        pass  # without a writable home every start measures


def obstacle(backend: str, device, precision: str) -> str:
    """Why a backend cannot be used so; empty where nothing is known to speak against it."""
    kind = BACKENDS[backend]
    if not find_spec(kind.package):
        return f'needs {kind.package}; install it: {install_hint("onnx", kind.package)}'
    if device.type not in kind.devices:
        return f'computes on {" or ".join(kind.devices)}, not on {device.type}'
    if precision not in kind.precisions:
        return f'computes in {" or ".join(kind.precisions)}, not in {precision}'
    return ''


def choose_device(name: str):
    """The torch device of this name, a GPU with its number.

    'auto' takes a GPU if there is one, and the CPU, with a note to the user, where that GPU is full
    or fails.

    Raises:
        DeviceError: there is such a GPU, but it is full or fails.
        SettingsError: no such device here.
    """
    import torch

    if name == 'auto':
        if not torch.cuda.is_available():
            return torch.device('cpu')
        try:
            return choose_device('cuda')
        except DeviceError as error:
            reason = first_line(error.__cause__)
            _note(f'the GPU cannot be used ({reason}); the CPU is used instead')
            return torch.device('cpu')
    there = False  # such a GPU, in working order or not
    try:
        device = torch.device(name)
        if device.type == 'cuda' and torch.cuda.is_available():
            there = device.index in (None, *range(torch.cuda.device_count()))
        one = torch.ones(1, device=device)
        (one + 1).item()  # PyTorch is built with kernels for some GPUs only
    except (RuntimeError, AssertionError) as error:
        problem = f"device '{name}' cannot be used here ({first_line(error)})"
        if there:
            raise DeviceError(f"{problem}; use 'cpu'") from error
        raise SettingsError(f"{problem}; use 'auto' or 'cpu'") from error
    return one.device


@cache  # a command asks for its device several times
def _note(sentence: str) -> None:
    print(f'note: {sentence}', file=sys.stderr)


@contextmanager
def _without_tf32():
    """cuDNN computes float32 in float32. The switch is one for the process, and is put back."""
    import torch

    cudnn = torch.backends.cudnn
    with _TF32_SWITCH:  # or two threads put back what the other has set
        try:
            before = cudnn.allow_tf32
        except RuntimeError:  # the user has chosen for each kind of layer: that stands
            yield
            return
        cudnn.allow_tf32 = False
        try:
            yield
        finally:
            cudnn.allow_tf32 = before


def _choose_precision(name: str, device) -> str:
    if name == 'auto':
        return 'float16' if device.type == 'cuda' else 'float32'
    if name not in PRECISIONS:
        raise SettingsError(
            f"unknown precision {name!r}; choose 'auto' or one of {', '.join(PRECISIONS)}"
        )
    return name


def _lower(network, dtype) -> None:
    """Weights of a `PoseRegressor` to half precision, in place; statistics and units stay exact.

    So does the last layer: its outputs may be metres from an origin far away.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    last = network.head[-1]
    exact = [last, *(x for x in network.backbone.modules() if isinstance(x, _BatchNorm))]
    states = [layer.state_dict() for layer in exact]
    for part in (network.backbone, network.head):
        part.to(dtype)
    for layer, state in zip(exact, states, strict=True):
        layer.float().load_state_dict(state)
    last.register_forward_pre_hook(lambda layer, given: (given[0].float(),))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ''


def first_line(error: BaseException) -> str:
    """What an error says, without its details; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
