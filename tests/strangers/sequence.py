"""Nets over time: sound, signals, text lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalikes import EncoderBlock
from strangers.stranger import Stranger, signal, words


class KeywordSpotter(nn.Module):
    """Depthwise separable 1-d convolutions over spectra [N, bands, frames]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(20, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(32)
        self.blocks = nn.ModuleList()
        for kernel in (3, 5):
            depth = nn.Conv1d(32, 32, kernel, padding=kernel // 2, groups=32, bias=False)
            point = nn.Conv1d(32, 32, 1, bias=False)
            self.blocks.append(nn.Sequential(depth, nn.BatchNorm1d(32), nn.ReLU(), point, nn.BatchNorm1d(32)))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = F.relu(block(x) + x)
        x = F.avg_pool1d(x, x.shape[-1])
        x = x.permute(0, 2, 1)
        return F.log_softmax(self.fc(x), dim=2).squeeze(1)


class RawAudio(nn.Module):
    """M5: a very wide kernel on the raw wave, pooling after each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.pool1 = nn.Conv1d(1, 16, 80, stride=16), nn.BatchNorm1d(16), nn.MaxPool1d(4)
        self.conv2, self.bn2, self.pool2 = nn.Conv1d(16, 32, 3), nn.BatchNorm1d(32), nn.MaxPool1d(4)
        self.conv3, self.bn3, self.fc1 = nn.Conv1d(32, 32, 3), nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.bn1(self.conv1(x))))
        x = self.pool2(F.relu(self.bn2(self.conv2(x))))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.adaptive_avg_pool1d(x, 1).permute(0, 2, 1)
        return self.fc1(x)


class GatedResidual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.filter_conv = nn.Conv1d(width, width, 2, dilation=dilation)
        self.gate_conv = nn.Conv1d(width, width, 2, dilation=dilation)
        self.residual_conv, self.skip_conv = nn.Conv1d(width, width, 1), nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (self.dilation, 0))  # nothing from the future
        z = torch.tanh(self.filter_conv(padded)) * torch.sigmoid(self.gate_conv(padded))
        return (self.residual_conv(z) + x) * 0.5**0.5, self.skip_conv(z)


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start_conv = nn.Conv1d(1, 16, 1)
        self.layers = nn.ModuleList(GatedResidual(16, 2**i) for i in range(4))
        self.end_conv_1, self.end_conv_2 = nn.Conv1d(32, 32, 1), nn.Conv1d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start_conv(x)
        skip = None
        for i, layer in enumerate(self.layers):
            x, s = layer(x)
            skip = s if i == 0 else s + skip
        assert skip is not None
        return self.end_conv_2(F.relu(self.end_conv_1(F.relu(skip))))


class Chomp1d(nn.Module):
    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    """Causal by padding on both sides and cutting the right one."""

    def __init__(self, fan_in: int, out: int, dilation: int) -> None:
        super().__init__()
        pad = 2 * dilation
        self.conv1 = nn.Conv1d(fan_in, out, 3, stride=1, padding=pad, dilation=dilation)
        self.conv2 = nn.Conv1d(out, out, 3, stride=1, padding=pad, dilation=dilation)
        first = [self.conv1, Chomp1d(pad), nn.ReLU(), nn.Dropout(0.2)]
        self.net = nn.Sequential(*first, self.conv2, Chomp1d(pad), nn.ReLU(), nn.Dropout(0.2))
        self.downsample = nn.Conv1d(fan_in, out, 1) if fan_in != out else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(out + res)


class TCN(nn.Module):
    """Each convolution stands in the tree twice: by its own name and in `net`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(TemporalBlock(4, 16, 1), TemporalBlock(16, 16, 2), TemporalBlock(16, 24, 4))
        self.linear = nn.Linear(24, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        y1 = self.network(inputs)
        return F.log_softmax(self.linear(y1[:, :, -1]), dim=1)


class CRNN(nn.Module):
    """Text lines: columns of a picture as time, GRUs in both directions, [T, N, classes] out."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential()
        fan_in = 1
        for i, out in enumerate((8, 16, 32)):
            self.cnn.add_module(f"conv{i}", nn.Conv2d(fan_in, out, 3, 1, 1))
            self.cnn.add_module(f"batchnorm{i}", nn.BatchNorm2d(out))
            self.cnn.add_module(f"relu{i}", nn.LeakyReLU(0.2, inplace=True))
            self.cnn.add_module(f"pooling{i}", nn.MaxPool2d((2, 2) if i == 0 else (2, 1)))
            fan_in = out
        self.cnn.add_module("last", nn.Conv2d(32, 32, (2, 1)))
        self.rnn, self.embedding = nn.GRU(32, 12, bidirectional=True), nn.Linear(24, 6)

    def forward(self, input: Tensor) -> Tensor:
        conv = self.cnn(input)
        _, _, h, _ = conv.size()
        assert h == 1, "the height of conv must be 1"
        conv = conv.squeeze(2).permute(2, 0, 1)  # [w, b, c]
        recurrent, _ = self.rnn(conv)
        t, b, h = recurrent.size()
        output = self.embedding(recurrent.view(t * b, h))
        return output.view(t, b, -1)


class Tagger(nn.Module):
    """Embedding, LSTM, two Linears: a class per word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(40, 16, padding_idx=0), nn.LSTM(16, 16, batch_first=True)
        self.hidden, self.hidden2tag = nn.Linear(16, 32), nn.Linear(32, 6)
        self.also = nn.Linear(32, 32)

    def forward(self, sentence: Tensor) -> Tensor:
        h0 = torch.zeros(1, sentence.size(0), 16)
        out, (_, _) = self.lstm(self.embedding(sentence), (h0, h0.clone()))
        return self.hidden2tag(F.elu(self.also(F.elu(self.hidden(out)))))


class Wav2Vec(nn.Module):
    """Strided 1-d convolutions with GroupNorm, a grouped convolution for places, transformer blocks, CTC classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv1d(1, 16, 10, 5, bias=False), nn.GroupNorm(16, 16), nn.GELU()),
                nn.Sequential(nn.Conv1d(16, 16, 3, 2, bias=False), nn.GELU()),
            ]
        )
        self.layer_norm, self.projection = nn.LayerNorm(16), nn.Linear(16, 16)
        self.pos_conv = nn.Conv1d(16, 16, 8, padding=4, groups=4)  # an even kernel: one frame too many, cut off
        self.layers, self.lm_head = nn.ModuleList(EncoderBlock(16) for _ in range(2)), nn.Linear(16, 6)

    def forward(self, input_values: Tensor) -> dict[str, Tensor]:
        hidden = input_values[:, None]
        for layer in self.conv_layers:
            hidden = layer(hidden)
        hidden = self.projection(self.layer_norm(hidden.transpose(1, 2)))
        places = self.pos_conv(hidden.transpose(1, 2))[:, :, :-1]
        hidden = hidden + F.gelu(places).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        return {"logits": self.lm_head(hidden), "last_hidden_state": hidden}


STRANGERS = [
    Stranger("keyword_spotter", KeywordSpotter, signal(20, 40), ("w1a1", "w8a8")),
    Stranger("raw_audio", RawAudio, signal(1, 1600)),
    Stranger("wavenet", WaveNet, signal(1, 64)),
    Stranger("tcn", TCN, signal(4, 40), ("w1a1", "ttq")),
    Stranger("crnn", CRNN, lambda n: (torch.randn(n, 1, 16, 32),)),
    Stranger("tagger", Tagger, words(40, 9)),
    Stranger("wav2vec", Wav2Vec, lambda n: (torch.randn(n, 200),)),
]
