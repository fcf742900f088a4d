"""One 1-bit convolution, codes in and codes out, beside the same convolution of the peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.measure.bench import AGAINST, measure
from bitwright.measure.peers import build_peer
from bitwright.measure.table import BenchTable
from bitwright.transforms.forward import torch_threads
from bitwright.transforms.twin import float_net


def conv_bench(
    channels: int = 256,
    size: int = 14,
    out: int | None = None,
    kernel: int = 3,
    batch: int = 1,
    threads: int = 1,
    *,
    ours: Callable[[], object] | Mapping[str, Callable[[], object]] | None = None,
    against: Sequence[str] = AGAINST,
    rounds: int = 15,
    precision: str = "1 bit",
) -> BenchTable:
    """Stride 1, padding `kernel // 2`.

    ours   runs our convolution of this shape once (`packed_conv` where nothing is given), or several ways to do so, of which the
           fastest counts; results are not looked at

    int8 peers get uint8 and give uint8: no quantize step, as ours gets bits and gives bits.
    """
    note = ""
    if ours is None:
        try:
            ours = packed_conv(channels, size, out, kernel, batch, threads)
        except InputError as error:  # a package without its native core still measures the peers
            note = f"unavailable: {error}"
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        conv = nn.Conv2d(channels, out or channels, kernel, padding=kernel // 2)
    with torch_threads(threads), torch.inference_mode():
        assert conv.bias is not None
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.05)
        conv.bias.zero_()
        net = float_net(conv, (torch.randn(batch, channels, size, size, generator=generator),))
        return measure(
            ours,
            [build_peer(peer, net, threads) for peer in against],
            precision=precision,
            shape=(batch, channels, size, size),
            threads=threads,
            rounds=rounds,
            note=note,
        )


def packed_conv(
    channels: int = 256, size: int = 14, out: int | None = None, kernel: int = 3, batch: int = 1, threads: int = 1
) -> Callable[[], object]:
    """Our kernel on random bits: packed words in, exact zero padding, a threshold per channel, packed words out."""
    from bitwright.engine import native

    generator = torch.Generator().manual_seed(0)
    out = out or channels
    bits = torch.randint(0, 2, (1, out, channels, kernel, kernel), generator=generator)
    plan = native.ConvPlan.bits(bits, w_mult=[2], w_zero=-1, x_mult=[2], x_zero=-1, padding=kernel // 2)
    x = torch.randn(batch, channels, size, size, generator=generator)
    words = native.to_words((x >= 0).permute(0, 2, 3, 1).to(torch.uint8).contiguous(), 1)
    output = native.CodeOutput(torch.zeros(1, out, dtype=torch.int32))
    return lambda: plan.run(words, output, None, threads)
