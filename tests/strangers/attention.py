"""Nets built on attention, and one that shows it can be left out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalikes import DropPath, Patches, TorchEncoder
from strangers.stranger import Stranger, image, words


class HeadedBlock(nn.Module):
    """torch's MultiheadAttention between norms, as torchvision has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.self_attention = (
            nn.LayerNorm(width, eps=1e-6),
            nn.MultiheadAttention(width, 2, batch_first=True),
        )
        self.dropout, self.ln_2 = nn.Dropout(0.1), nn.LayerNorm(width, eps=1e-6)
        hidden = [nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1)]
        self.mlp = nn.Sequential(*hidden, nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.dim() == 3, f"Expected (batch_size, seq_length, hidden_dim) got {input.shape}")
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x) + input
        return x + self.mlp(self.ln_2(x))


class ViTMultihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_proj, self.class_token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, 16).normal_(std=0.02))
        self.layers, self.ln = nn.Sequential(HeadedBlock(16), HeadedBlock(16)), nn.LayerNorm(16)
        self.heads = nn.Sequential(nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.conv_proj(x).reshape(n, 16, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1)
        return self.heads(self.ln(self.layers(x + self.pos_embedding))[:, 0])


class FusedAttention(nn.Module):
    """One Linear for all three, unbound; the fused product of torch, as timm has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=0.0)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class ViTFused(nn.Module):
    """No class token: the mean of the patches."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.norm1, self.attn = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.ModuleList()
        self.norm2, self.mlp = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.ModuleList()
        for _ in range(2):
            self.attn.append(FusedAttention(width, 2))
            self.mlp.append(nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)))
        self.drop_path, self.fc_norm, self.head = DropPath(0.1), nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        for norm1, attn, norm2, mlp in zip(self.norm1, self.attn, self.norm2, self.mlp, strict=True):
            x = x + self.drop_path(attn(norm1(x)))
            x = x + self.drop_path(mlp(norm2(x)))
        return self.head(self.fc_norm(x.mean(dim=1)))


def window_partition(x: Tensor, size: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)


def window_reverse(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    c = windows.shape[-1]
    x = windows.view(-1, h // size, w // size, size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h, w, c)


class WindowAttention(nn.Module):
    """Attention within a window, with a table of biases for relative places."""

    relative_position_index: Tensor

    def __init__(self, width: int, size: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale, self.size = heads, (width // heads) ** -0.5, size
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) * 0.02)
        coords = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0).contiguous()
        relative[:, :, 0] += size - 1
        relative[:, :, 1] += size - 1
        relative[:, :, 0] *= 2 * size - 1
        self.register_buffer("relative_position_index", relative.sum(-1))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = q @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            nw = mask.shape[0]
            attn = attn.view(b // nw, nw, self.num_heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.num_heads, n, n)
        return self.proj((self.softmax(attn) @ v).transpose(1, 2).reshape(b, n, c))


class SwinBlock(nn.Module):
    """Windows, shifted by a roll in every second block; places that met by the roll are masked."""

    attn_mask: Tensor | None

    def __init__(self, width: int, side: int, size: int, shift: int) -> None:
        super().__init__()
        self.side, self.window_size, self.shift_size = side, size, shift
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), WindowAttention(width, size, 2), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        mask = None
        if shift > 0:
            parts, count = torch.zeros(1, side, side, 1), 0
            slices = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
            for h in slices:
                for w in slices:
                    parts[:, h, w, :] = count
                    count += 1
            of_window = window_partition(parts, size).view(-1, size * size)
            mask = of_window.unsqueeze(1) - of_window.unsqueeze(2)
            mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        b, length, c = x.shape
        shortcut, shift, size = x, self.shift_size, self.window_size
        assert length == self.side * self.side, "input feature has wrong size"
        x = self.norm1(x).view(b, self.side, self.side, c)
        if shift > 0:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(x, size).view(-1, size * size, c)
        windows = self.attn(windows, self.attn_mask).view(-1, size, size, c)
        x = window_reverse(windows, size, self.side, self.side)
        if shift > 0:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        x = shortcut + x.view(b, length, c)
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.patch_norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.blocks = nn.ModuleList([SwinBlock(16, 8, 4, 0), SwinBlock(16, 8, 4, 2)])
        self.reduction, self.merge_norm = nn.Linear(64, 32, bias=False), nn.LayerNorm(64)
        self.last, self.norm = SwinBlock(32, 4, 4, 0), nn.LayerNorm(32)
        self.avgpool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        b, _, c = x.shape
        x = x.view(b, 8, 8, c)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).view(b, -1, 4 * c)
        x = self.norm(self.last(self.reduction(self.merge_norm(x))))
        return self.head(torch.flatten(self.avgpool(x.transpose(1, 2)), 1))


class MixerBlock(nn.Module):
    """An MLP over the patches (by a transpose), then one over the channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp_tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.mlp_channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches by a reshape and a Linear: `b c (h p) (w q) -> b (h w) (p q c)`."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.embed = 8, nn.Linear(8 * 8 * 3, 32)
        self.blocks = nn.Sequential(*[MixerBlock(16, 32) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)
        return self.head(self.norm(self.blocks(self.embed(x))).mean(dim=1))


class PositionalEncoding(nn.Module):
    pe: Tensor

    def __init__(self, width: int, length: int = 20) -> None:
        super().__init__()
        position = torch.arange(length).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        pe = torch.zeros(1, length, width)
        pe[0, :, 0::2], pe[0, :, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        self.register_buffer("pe", pe, persistent=False)
        self.dropout = nn.Dropout(p=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[:, : x.size(1)])


class TextEncoder(nn.Module):
    """torch's encoder over words, padding masked: word 0 is none."""

    def __init__(self, words: int = 40, width: int = 16) -> None:
        super().__init__()
        self.width, self.embedding, self.pos_encoder = width, nn.Embedding(words, width), PositionalEncoding(width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, 0.1, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.linear = nn.Linear(width, 5)

    def forward(self, src: Tensor) -> Tensor:
        x = self.pos_encoder(self.embedding(src) * math.sqrt(self.width))
        x = self.transformer_encoder(x, src_key_padding_mask=src == 0)
        return self.linear(x.mean(dim=1))


class CausalAttention(nn.Module):
    """The product written out, with a triangle of ones in a buffer."""

    bias: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(length, length)).view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k, q, v = (y.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for y in (k, q, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class GPT(nn.Module):
    def __init__(self, words: int = 40, width: int = 16, length: int = 12) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(words, width), nn.Embedding(length, width), nn.Dropout(0.1)
        self.h = nn.ModuleList(
            nn.ModuleDict(
                {"ln_1": nn.LayerNorm(width), "attn": CausalAttention(width, 2, length), "ln_2": nn.LayerNorm(width),
                 "c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
            )
            for _ in range(2)
        )  # fmt: skip
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(pos))
        for block in self.h:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["attn"](block["ln_1"](x))
            y = block["c_fc"](block["ln_2"](x))
            y = 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * torch.pow(y, 3.0))))
            x = x + block["c_proj"](y)
        return self.lm_head(self.ln_f(x))


STRANGERS = [
    Stranger("vit", Patches, image()),
    Stranger("vit_multihead", ViTMultihead, image()),
    Stranger("vit_fused", ViTFused, image(), ("w1a1", "w8a8")),
    Stranger("swin", Swin, image()),
    Stranger("mlp_mixer", Mixer, image(), ("w1a1", "w8a8")),
    Stranger("transformer_encoder", TorchEncoder, lambda n: (torch.randn(n, 6, 8),)),
    Stranger("text_encoder", TextEncoder, words(40, 10)),
    Stranger("gpt", GPT, words(40, 12), ("w1a1", "w8a8")),
]
