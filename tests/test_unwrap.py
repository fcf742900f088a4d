import copy
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm
from torch.optim.swa_utils import AveragedModel

from bitwright.transforms.copying import copy_model
from bitwright.transforms.unwrap import unwrap


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "averaged": lambda m: AveragedModel(m),
    "compiled DataParallel": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_looked_through(name):
    inner = net()
    wrapped = WRAPPERS[name](inner)
    found = unwrap(wrapped)
    assert type(found) is nn.Sequential
    if name != "averaged":  # which keeps a copy
        assert found is inner


def test_a_wrapper_with_a_hook_is_no_mere_wrapper():
    wrapped = nn.DataParallel(net())
    wrapped.register_forward_hook(lambda m, i, o: -o)
    assert unwrap(wrapped) is wrapped


def test_lightning_modules():
    from lightning.pytorch import LightningModule

    class Task(LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss = net(), nn.CrossEntropyLoss()

    class Scaled(Task):
        def forward(self, x):
            return self.net(x / 255)

    class Two(Task):
        def __init__(self):
            super().__init__()
            self.other = net()

    task = Task()
    assert unwrap(task) is task.net
    for other in (Scaled(), Two()):
        assert unwrap(other) is other


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        self.last = self.layer(x)
        self.kept = {"maps": [self.last, (self.last * 2,)]}
        return self.last.sum()


def test_a_kept_tensor_is_detached_in_the_copy_and_untouched_in_the_model():
    model = Keeps()
    model(torch.ones(2, 3))
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    twin = copy_model(model)
    assert twin.last.grad_fn is None and model.last.grad_fn is not None
    assert torch.equal(twin.last, model.last) and twin.last.data_ptr() != model.last.data_ptr()
    assert twin.kept["maps"][0] is twin.last  # one tensor stays one tensor
    assert torch.equal(twin.kept["maps"][1][0], model.last * 2)
    assert twin.layer.weight.requires_grad and twin.layer.weight is not model.layer.weight


def test_what_cannot_be_copied_is_shared():
    model = Keeps()
    model.lock, model.rows = threading.Lock(), (i for i in range(3))
    model(torch.ones(2, 3))
    twin = copy_model(model)
    assert twin.lock is model.lock and twin.rows is model.rows
    assert twin.layer.weight is not model.layer.weight and torch.equal(twin.last, model.last)


@pytest.mark.parametrize("way", [weight_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)])
def test_weights_that_a_hook_works_out(way):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(way(nn.Linear(3, 3)), nn.ReLU())
    x = torch.randn(2, 3)
    want = model(x)
    twin = copy_model(model)
    assert torch.equal(twin(x), want)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(model(x), want) and not torch.equal(twin(x), want)


def test_fabric_wrapper():
    from lightning.fabric import Fabric

    inner = net()
    assert unwrap(Fabric(accelerator="cpu", devices=1).setup_module(inner)) is inner
