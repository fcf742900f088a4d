"""Python threads that share one packed net, in each of its forms, while others keep torch's own threads busy."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine import native
from bitwright.engine.native_run import Program
from bitwright.engine.packed import PackedModel

B = bw.nn
needs_core = pytest.mark.skipif(not native.available(), reason=native.notice() or "native core missing")
CALLERS, CALLS = 6, 24


class Net(nn.Module):
    """Layers on bits and on bytes, a residual and floats between them, large enough for several threads each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.one, self.norm = B.Conv2d(32, 64, 3, padding=1, bias=False, w="bwn", x="sign"), nn.BatchNorm2d(64)
        self.two = B.Conv2d(64, 64, 3, padding=1, w="ttq", x={"part": "lsq", "bits": 4, "signed": True})
        self.head = B.Linear(64, 5, w="bwn", x="sign")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(self.stem(x)))
        return self.head((x + self.two(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def two_threads_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained() -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 16, 16))
    return net.eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1 + i % 5, 3, 16, 16, generator=generator) for i in range(12)]


def converted(form: str, threads: int | None) -> Any:
    return bw.convert(trained(), batches()[0], form=form, threads=threads, verify=False).model


def share(run: Callable[[Tensor], Any], want: list[Tensor]) -> None:
    """Several threads call `run`, from the first call on, beside two that use torch's threads; each answer is the right one."""
    given, done = batches(), threading.Event()
    begin = threading.Barrier(CALLERS + 2)

    def call(k: int) -> list[int]:
        begin.wait()
        order = [(k + i) % len(given) for i in range(CALLS)]
        return [i for i in order if not np.array_equal(np.asarray(run(given[i])), want[i].numpy())]

    def busy(_: int) -> list[int]:
        x = torch.randn(8, 32, 32, 32)
        conv = nn.Conv2d(32, 32, 3).requires_grad_(False)
        first = conv(x)
        begin.wait()
        wrong = 0
        while not done.is_set():
            wrong += not torch.equal(conv(x), first)
        return [-1] * wrong

    with ThreadPoolExecutor(CALLERS + 2) as pool:
        beside = [pool.submit(busy, k) for k in range(2)]
        callers = [pool.submit(call, k) for k in range(CALLERS)]
        try:
            wrong = [i for c in callers for i in c.result()]
        finally:
            done.set()
        assert wrong == [] and [i for b in beside for i in b.result()] == []


@pytest.mark.few("graph-2", "layers-None")
@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("form", ["graph", "layers"])
def test_threads_share_a_net(form: str, threads: int | None) -> None:
    net = converted(form, threads)
    want = [net(x) for x in batches()]
    share(copy.deepcopy(net), want)  # a copy: its programs are made while several threads ask for them


@pytest.mark.slow
@pytest.mark.parametrize("form", ["graph", "layers"])
def test_threads_share_a_compiled_net(form: str) -> None:
    net = converted(form, 2)
    want = [net(x) for x in batches()]
    torch._dynamo.reset()
    run: Any = torch.compile(copy.deepcopy(net), dynamic=True, backend="eager")
    run(batches()[1])
    share(run, want)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_session(threads: int, tmp_path: Path) -> None:
    net, path = converted("graph", 1), tmp_path / "net.onnx"
    bw.export.onnx(net, batches()[0], path)
    alone = bw.ort.session(path, threads=1)
    name = alone.get_inputs()[0].name

    def answer(session: Any, x: Tensor) -> Any:
        return session.run(None, {name: x.numpy()})[0]

    want = [torch.from_numpy(np.asarray(answer(alone, x))) for x in batches()]
    for x, y in zip(batches(), want, strict=True):
        torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-4)
    session = bw.ort.session(path, threads=threads)
    share(lambda x: answer(session, x), want)


@needs_core
@pytest.mark.parametrize("form", ["graph", "layers"])
def test_each_call_says_how_many_threads(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    run = Program.run
    monkeypatch.setattr(
        Program, "run", lambda self, env, given, threads: asked.append(threads) or run(self, env, given, threads)
    )
    x = batches()[0]
    net = converted(form, 3)
    asked.clear()
    net(x)
    assert asked and set(asked) == {3}
    net = converted(form, None)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        asked.clear()
        net(x)
        assert asked and set(asked) == {threads}


@needs_core
def test_a_net_that_is_new_to_all_threads_is_built_for_each_alike() -> None:
    graph, given = converted("graph", 2).graph, batches()
    want = PackedModel(graph, "reference")(given[3])
    for _ in range(5):
        net, begin = PackedModel(graph, threads=2), threading.Barrier(4)

        def first(_: int, net: PackedModel = net, begin: threading.Barrier = begin) -> Tensor:
            begin.wait()
            return net(given[3])

        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(first, range(4)))
        assert all(torch.equal(y, got[0]) for y in got)
        torch.testing.assert_close(got[0], want, rtol=1e-5, atol=1e-5)


FORKED = """
import os
import torch
from bitwright.engine import native

torch.manual_seed(0)
codes = torch.randint(0, 256, (1, 28, 28, 64), dtype=torch.uint8)
output = native.FloatOutput(torch.ones(64), torch.zeros(64))
plan = native.ConvPlan.bytes(torch.randint(-128, 128, (64, 64, 3, 3)), padding=1)
want = plan.run(codes, output, None, 1)
alike = [torch.equal(plan.run(codes, output, None, threads), want) for threads in (2, 3, 8, 2)]
child = os.fork()
if not child:
    os._exit(0 if all(torch.equal(plan.run(codes, output, None, threads), want) for threads in (3, 2)) else 1)
print(all(alike), os.waitpid(child, 0)[1], all(torch.equal(plan.run(codes, output, None, 8), want) for _ in range(50)))
"""


@needs_core
def test_a_forked_process_has_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "0", "True"], done.stderr
