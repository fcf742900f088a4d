"""Nets of other trades: pictures out, two inputs, users and items, points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strangers.stranger import Stranger, image


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(True), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(True)
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class VariationalAutoencoder(nn.Module):
    """Draws in training, takes the mean in evaluation; picture, mean and variance as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc1b = nn.Linear(256, 48), nn.Linear(48, 48)
        self.fc21, self.fc22 = nn.Linear(48, 8), nn.Linear(48, 8)
        self.fc3, self.fc4 = nn.Linear(8, 48), nn.Linear(48, 256)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        if not self.training:
            return mu
        std = torch.exp(0.5 * logvar)
        return mu + torch.randn_like(std) * std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1b(F.relu(self.fc1(x.view(-1, 256)))))
        mu, logvar = self.fc21(h), self.fc22(h)
        h3 = F.relu(self.fc3(self.reparameterize(mu, logvar)))
        return torch.sigmoid(self.fc4(h3)), mu, logvar


class Siamese(nn.Module):
    """Two pictures through one net; one score."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8),
            nn.ReflectionPad2d(1), nn.Conv2d(8, 16, 3, 2), nn.ReLU(inplace=True), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.fc1, self.fc2 = nn.Linear(16 * 8 * 8, 32), nn.Linear(32, 1)

    def forward_once(self, x: Tensor) -> Tensor:
        output = self.cnn(x)
        output = output.view(output.size()[0], -1)
        return self.fc1(output)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        difference = torch.abs(self.forward_once(input1) - self.forward_once(input2))
        return torch.sigmoid(self.fc2(difference))


class Triplet(nn.Module):
    """An anchor and another picture; both embeddings and their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 5, 2, 2), nn.BatchNorm2d(16)
        self.conv2, self.act, self.fc = nn.Conv2d(16, 32, 5, 2, 2), nn.PReLU(), nn.Linear(32, 8)

    def embed(self, x: Tensor) -> Tensor:
        x = self.act(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return F.normalize(self.fc(F.max_pool2d(x, x.shape[2:]).flatten(1)), dim=-1)

    def forward(self, anchor: Tensor, other: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        a, b = self.embed(anchor), self.embed(other)
        return (a, b), (a - b).pow(2).sum(dim=1)


class SubPixel(nn.Module):
    """ESPCN: everything at low resolution, then a shuffle of channels into pixels."""

    def __init__(self, upscale: int = 2) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, (5, 5), (1, 1), (2, 2)), nn.Conv2d(32, 32, (3, 3), (1, 1), (1, 1))
        self.conv3, self.conv4 = nn.Conv2d(32, 16, (3, 3), (1, 1), (1, 1)), nn.Conv2d(16, upscale**2, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(upscale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv3(self.relu(self.conv2(self.relu(self.conv1(x))))))
        return self.pixel_shuffle(self.conv4(x))


class MeanShift(nn.Conv2d):
    """The mean color, as a 1x1 convolution that is never trained."""

    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        assert self.bias is not None
        self.bias.data = sign * torch.tensor([0.4488, 0.4371, 0.4040])
        for p in self.parameters():
            p.requires_grad = False


class EDSRBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        res = self.body(x).mul(0.1)
        res += x
        return res


class EDSR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1))
        self.body = nn.Sequential(EDSRBlock(16), EDSRBlock(16), nn.Conv2d(16, 16, 3, padding=1))
        self.tail = nn.Sequential(
            nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2)), nn.Conv2d(16, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        res = self.body(x)
        res += x
        return self.add_mean(self.tail(res))


class NeuMF(nn.Module):
    """A recommender: users and items as numbers, a product of embeddings beside an MLP on others."""

    def __init__(self, users: int = 20, items: int = 30, width: int = 8) -> None:
        super().__init__()
        self.user_mf, self.item_mf = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_mlp, self.item_mlp = nn.Embedding(users, 2 * width), nn.Embedding(items, 2 * width)
        self.fc_layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((32, 32), (32, 16), (16, 8)))
        self.affine_output, self.logistic = nn.Linear(16, 1), nn.Sigmoid()

    def forward(self, user_indices: Tensor, item_indices: Tensor) -> Tensor:
        vector = torch.cat([self.user_mlp(user_indices), self.item_mlp(item_indices)], dim=-1)
        product = torch.mul(self.user_mf(user_indices), self.item_mf(item_indices))
        for idx, _ in enumerate(range(len(self.fc_layers))):
            vector = nn.functional.relu(self.fc_layers[idx](vector))
        return self.logistic(self.affine_output(torch.cat([vector, product], dim=-1))).squeeze(-1)


class DLRM(nn.Module):
    """Dense features and categories: a tower, a table per category, products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(n, 16, mode="sum") for n in (10, 20, 30))
        self.bot_l = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.top_l = nn.Sequential(nn.Linear(22, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bot_l(dense)
        ly = [emb(sparse[:, k : k + 1]) for k, emb in enumerate(self.emb_l)]
        batch, d = x.shape
        t = torch.cat([x, *ly], dim=1).view((batch, -1, d))
        z = torch.bmm(t, torch.transpose(t, 1, 2))
        ni, nj = z.shape[1:]
        li = [i for i in range(ni) for _ in range(i)]
        lj = [j for i in range(nj) for j in range(i)]
        return torch.sigmoid(self.top_l(torch.cat([x, z[:, li, lj]], dim=1)))


class PointNet(nn.Module):
    """Points [N, 3, P]: a learned transform of the points, shared 1x1 convolutions, the maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.stn_conv, self.stn_bn, self.stn_fc = nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.Linear(16, 9)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 32, 1), nn.Conv1d(32, 32, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(16), nn.BatchNorm1d(32), nn.BatchNorm1d(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batchsize = x.size()[0]
        t = torch.max(F.relu(self.stn_bn(self.stn_conv(x))), 2, keepdim=True)[0]
        iden = torch.eye(3).flatten().view(1, 9).repeat(batchsize, 1)
        trans = (self.stn_fc(t.view(-1, 16)) + iden).view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 32)
        return F.log_softmax(self.fc(x), dim=1), trans


def _pair(n: int) -> tuple[Tensor, ...]:
    return torch.randn(n, 1, 16, 16), torch.randn(n, 1, 16, 16)


STRANGERS = [
    Stranger("autoencoder", Autoencoder, image(1, 16)),
    Stranger("vae", VariationalAutoencoder, image(1, 16), ("w1a1", "w8a8")),
    Stranger("siamese", Siamese, _pair),
    Stranger("triplet", Triplet, _pair, ("w1a1", "w8a8")),
    Stranger("super_resolution", SubPixel, image(1, 16)),
    Stranger("edsr", EDSR, image(3, 12), ("w1a1", "ttq")),
    Stranger("recommender", NeuMF, lambda n: (torch.randint(20, (n,)), torch.randint(30, (n,)))),
    Stranger("dlrm", DLRM, lambda n: (torch.randn(n, 13), torch.randint(10, (n, 3)))),
    Stranger("pointnet", PointNet, lambda n: (torch.randn(n, 3, 32),)),
]
