"""Parts of pictures are recorded while the device is busy, and give the same bytes when they are done again."""

import gc
import weakref
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from tests.engine.editing import build, parameters
from tests.engine.fast import networks
from zwatch.engine.adapted import AdaptedLinear, Down, view_of
from zwatch.engine.computing import Control
from zwatch.engine.factory import EngineFactory
from zwatch.engine.fast import computing
from zwatch.engine.fast.computing import FastComputing
from zwatch.engine.fast.graphs import MOST, Graphs
from zwatch.engine.fast.operations import TorchOperations
from zwatch.engine.networks.configs import ControlConfig
from zwatch.engine.networks.controlnet import ZImageControlNet
from zwatch.engine.schedule import EulerSchedule
from zwatch.shadow.device import Device


class Again:
    """What a recorder makes on a device that cannot record: it calls the function again, on the same inputs, into the same output.
    As a graph, it holds neither the network nor another picture's tensors."""

    def __init__(self, function, inputs):
        self.inputs = [one.clone() for one in inputs]
        self.output = torch.full_like(function(*self.inputs), torch.nan)
        [network] = function.args
        self._network, self._function = weakref.ref(network), partial(function.func, **function.keywords)
        self.replays = 0

    def replay(self):
        self.output.copy_(self._function(self._network(), *self.inputs))
        self.replays += 1


class Recorder:
    """Records in memory that every replay overwrites, as CUDA's graphs do."""

    def __init__(self):
        self.made = []

    def __call__(self, function, inputs):
        self.made.append(weakref.ref(made := Again(function, inputs)))
        return made

    @property
    def replays(self):
        return sum(made().replays for made in self.made)


@contextmanager
def held(graphs):
    assert graphs.hold()
    try:
        yield FastComputing(TorchOperations(), graphs=graphs)
    finally:
        graphs.release()


@pytest.fixture(autouse=True)
def _recordable(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(computing, "is_recordable", lambda inputs: True)
    with torch.inference_mode():
        yield


def drawn(transformer, using, seed, lengths=(20,), size=(8, 6), steps=4):
    """Return the velocities of a picture's steps."""
    made = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 16, *size, generator=made)
    prompts = [torch.randn(length, 24, generator=made).to(transformer.dtype) for length in lengths]
    timeline = EulerSchedule(shift=3.0).timeline(steps, 12, latents.device)
    at = using.velocities(transformer, timeline, prompts, latents)
    return [found.clone() for number in range(steps) for found in at(latents * (1 - number / 9), number)]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(one, two) for one, two in zip(left, right, strict=True))


CASES = [{}, {"lengths": (20, 30)}, {"lengths": (20, 40)}, {"size": (4, 4)}, {"lengths": (70,)}, {"steps": 2}]


def test_the_steps_have_the_same_bits_again_whatever_came_between():
    transformer, recorder = networks.transformer(torch.float32), Recorder()
    graphs, plain = Graphs(recorder, lambda: True), FastComputing(TorchOperations())
    for seed in range(3):
        for case in CASES:
            with held(graphs) as using:
                assert same(drawn(transformer, using, seed, **case), drawn(transformer, plain, seed, **case))
    assert len(recorder.made) == 5 + 4 + 2, (
        "of each size, length and number of prompts; of prompts; of numbers of steps"
    )
    assert recorder.replays > 60


def test_encoded_prompts_have_the_same_bits_again_and_stay_as_they_are():
    network, recorder = networks.text_encoder(torch.float32), Recorder()
    graphs, plain = Graphs(recorder, lambda: True), FastComputing(TorchOperations())
    prompts = [(torch.randint(0, 100, (64,)), torch.arange(64) < count) for count in (3, 32, 7, 33, 64)]
    expected = [plain.encode(network, *prompt) for prompt in prompts]
    with held(graphs) as using:
        using.encode(network, *prompts[0])
        graphs.record_one(network)
        assert not recorder.made, "it may never be asked for again"
    for _ in range(2):
        with held(graphs) as using:
            assert same([using.encode(network, *prompt) for prompt in prompts], expected)
            for _ in range(3):
                graphs.record_one(network)
    assert len(recorder.made) == 2
    assert recorder.replays == 5


def test_small_pictures_are_decoded_again_with_the_same_bits():
    network, recorder = networks.autoencoder(torch.float32), Recorder()
    graphs, plain = Graphs(recorder, lambda: True), FastComputing(TorchOperations())
    latents = [torch.randn(1, 16, side, 6) for side in (8, 4, 8, 4)]
    expected = [plain.decode(network, one) for one in latents]
    for _ in range(2):
        with held(graphs) as using:
            assert same([using.decode(network, one) for one in latents], expected)
            for _ in range(3):
                graphs.record_one(network)
    assert (len(recorder.made), recorder.replays) == (2, 4)


def test_other_versions_have_graphs_of_their_own_which_go_with_them():
    recorder = Recorder()
    graphs, plain = Graphs(recorder, lambda: True), FastComputing(TorchOperations())
    versions = [networks.transformer(torch.float32, seed=seed) for seed in (1, 2)]
    for _ in range(2):
        for version in versions:
            with held(graphs) as using:
                assert same(drawn(version, using, 3), drawn(version, plain, 3))
    # Each a step; then what came before the steps.
    assert len(recorder.made) == 2 + 2 * 2
    versions.pop(0)
    del version
    gc.collect()
    assert [made() is None for made in recorder.made] == [True, False, True, True, False, False]
    assert graphs.forget()
    gc.collect()
    assert [made() for made in recorder.made] == [None] * 6
    assert not graphs.forget()


def test_a_version_that_goes_before_it_is_recorded_is_not_kept():
    graphs, network = Graphs(Recorder(), lambda: True), networks.text_encoder(torch.float32)
    with held(graphs) as using:
        for _ in range(2):
            using.encode(network, torch.randint(0, 100, (64,)), torch.arange(64) < 3)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
    graphs.record_one(networks.transformer(torch.float32))


def test_without_memory_nothing_is_recorded():
    transformer, recorder = networks.transformer(torch.float32), Recorder()
    graphs, plain = Graphs(recorder, lambda: False), FastComputing(TorchOperations())
    for _ in range(2):
        with held(graphs) as using:
            assert same(drawn(transformer, using, 3), drawn(transformer, plain, 3))
    assert not recorder.made


def test_what_cannot_be_recorded_is_computed_and_tried_once(caplog):
    transformer, tried = networks.transformer(torch.float32), []

    def record(function, inputs):
        tried.append(1)
        raise torch.OutOfMemoryError("no memory for this")

    graphs, plain = Graphs(record, lambda: True), FastComputing(TorchOperations())
    for _ in range(3):
        with held(graphs) as using:
            assert same(drawn(transformer, using, 3), drawn(transformer, plain, 3))
    assert len(tried) == 3, "a step, and twice what comes before the steps"
    assert "cannot be recorded (no memory for this)" in caplog.text


def test_the_oldest_graph_of_a_network_goes_first():
    transformer, recorder = networks.transformer(torch.float32), Recorder()
    graphs = Graphs(recorder, lambda: True)
    shared = 2  # what does not depend on the size
    for number in range(MOST - shared + 1):
        with held(graphs) as using:
            drawn(transformer, using, 3, size=(2, 2 * number + 2))
    gc.collect()
    assert [made() is None for made in recorder.made] == [True] + [False] * MOST


def test_only_one_request_has_them():
    graphs = Graphs(Recorder(), lambda: True)
    with held(graphs):
        assert not graphs.hold()
    assert graphs.hold()


def pixels(engine, *prompt_and_seeds, **changes):
    return [np.asarray(image) for image in engine.serve(parameters(*prompt_and_seeds, **changes)).images]


@pytest.mark.gpu
def test_on_a_gpu_requests_have_the_same_bytes_with_graphs_and_without(models, tmp_path):
    device = Device("cuda", cache=tmp_path)
    made = EngineFactory(device, tmp_path, exact=False)
    engines = [build(made, models, name) for name in ("v1", "v2")]
    engines[0].prepare()
    for thread in device.preparing:
        thread.join()
    requests = [
        ("a cat", {}),
        ("a dog " * 30, {}),
        ("a cat", {"guidance_scale": 3.0, "negative_prompt": "a " * 60}),
        ("a cat", {"width": 48, "height": 80}),
    ]

    def draw():
        return [pixels(engine, prompt, 7, steps=5, **changes)[0] for prompt, changes in requests for engine in engines]

    assert device.recorder.held == 0
    first = draw()
    for _ in range(6):  # something more is recorded each time
        made.acceleration.prompts.clear()
        assert all(np.array_equal(*pair) for pair in zip(draw(), first, strict=True))
    assert device.recorder.held > 0
    held = device.recorder.held
    draw()
    assert device.recorder.held == held
    assert made.acceleration.give_room()
    torch.cuda.empty_cache()
    assert device.recorder.held == 0
    assert all(np.array_equal(*pair) for pair in zip(draw(), first, strict=True))
    assert device.recorder.held > 0


def test_networks_that_draw_with_loras_have_graphs_of_their_own_which_go_with_them():
    network, recorder = networks.transformer(torch.float32), Recorder()
    graphs, plain = Graphs(recorder, lambda: True), FastComputing(TorchOperations())
    part = network.get_submodule("layers.0.attention.to_q")
    scales = torch.full((4,), 0.5)
    adapter = AdaptedLinear(part, Down(torch.randn(4, 48), scales), torch.randn(48, 4))
    view = view_of(network, {"layers.0.attention.to_q": adapter})
    for seed in range(3):
        for one in (network, view):
            with held(graphs) as using:
                assert same(drawn(one, using, seed), drawn(one, plain, seed))
    assert len(recorder.made) == 2 * 3
    scales.fill_(-0.25)  # as a request with another scale does: what was recorded reads it
    with held(graphs) as using:
        assert same(drawn(view, using, 1), drawn(view, plain, 1))
        assert not same(drawn(view, using, 1), drawn(network, plain, 1))
    assert len(recorder.made) == 2 * 3
    del view, one
    gc.collect()
    assert [made() is None for made in recorder.made] == [False, True, False, False, True, True]


@pytest.mark.parametrize("kind", [None, "control_layers", "control_noise_refiner"], ids=str)
def test_guided_pictures_have_graphs_of_their_own_which_read_what_guides_them_and_let_it_go(kind):
    network = networks.transformer(torch.float32)
    config = ControlConfig(
        control_layers_places=(0, 1), control_in_dim=16, control_refiner_layers_places=(0,), add_control_noise_refiner=kind,
        dim=network.config.dim, n_heads=network.config.n_heads, n_refiner_layers=network.config.n_refiner_layers,
    )  # fmt: skip
    made = [networks.filled(ZImageControlNet(config), torch.float32, "cpu", seed) for seed in (3, 4)]
    guides = [Control(made[one], torch.randn(16, 1, 8, 6), scale) for one, scale in ((0, 1.0), (0, 0.5), (1, 1.0))]
    plain = FastComputing(TorchOperations())
    recorder = Recorder()
    graphs = Graphs(recorder, lambda: True)

    def steps(using, control):
        timeline = EulerSchedule(shift=3.0).timeline(4, 12, torch.device("cpu"))
        generator = torch.Generator().manual_seed(5)
        latents = torch.randn(1, 16, 8, 6, generator=generator)
        at = using.velocities(network, timeline, [torch.randn(20, 24, generator=generator)], latents, control)
        return torch.stack([one for number in range(4) for one in at(latents, number)])

    expected = [steps(plain, control) for control in (None, *guides)]
    assert not any(torch.equal(expected[0], one) for one in expected[1:])
    with held(graphs) as using:
        for _ in range(2):
            found = [steps(using, control) for control in (None, *guides)]
            assert all(map(torch.equal, found, expected))
    # A step without control, one for each ControlNet, and what they share: another scale needs none.
    assert len(recorder.made) == 3 + 2
    gone = weakref.ref(made[1])
    del made[1], guides[2]
    gc.collect()
    assert gone() is None
