"""save and load of trained nets: strict keys, recipe in the file, atomic writes, never a pickle."""

from __future__ import annotations

import errno
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import bitwright as bw
from bitwright import atomic
from bitwright import tensors as tensor_files
from bitwright.errors import InputError
from bitwright.tensors import read_tensors, write_tensors

RULES = [
    {"match": "*", "w": "ttq", "x": {"part": "dorefa_a", "bits": 2}},
    {"match": "first", "w": "float", "x": "float"},
]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def floats() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def trained() -> Any:
    net = bw.apply(floats(), RULES, X)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    with bw.attach(net, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            net(X).square().mean().backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    net = trained()
    path = tmp_path / "net.safetensors"
    bw.save(net, path, epoch=3, note="hi", accuracy=[0.5, 0.25])
    return net, path


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[k], right[k]) for k in left)


def test_a_float_model_gets_the_recipe_of_the_file(saved: tuple[Any, Path]) -> None:
    net, path = saved
    back = bw.load(path, floats()).eval()
    assert same(back, net) and torch.equal(back(X), net(X))
    assert bw.recipe_of(back).to_toml() == bw.recipe_of(net).to_toml()


def test_a_model_with_the_recipe_is_filled(saved: tuple[Any, Path]) -> None:
    net, path = saved
    other = bw.apply(floats(), RULES, X)
    assert bw.load(path, other) is other and same(other, net)
    assert len(bw.recipe_of(other).rules) == len(bw.recipe_of(net).rules)


def test_the_file_is_plain(saved: tuple[Any, Path]) -> None:
    net, path = saved
    with safe_open(path, "pt") as f:
        metadata, keys = f.metadata(), set(f.keys())
    assert keys == set(net.state_dict()) and {"3.weight", "3.w.p", "3.w.n", "1.running_mean"} <= keys
    assert (metadata["bitwright"], metadata["format"], metadata["note"], metadata["epoch"]) == (
        "trained",
        "1",
        "hi",
        "3",
    )
    assert json.loads(metadata["accuracy"]) == [0.5, 0.25] and 'w = "ttq"' in metadata["recipe"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~atomic._umask()


def test_a_float_model_without_a_recipe(tmp_path: Path) -> None:
    net = floats()
    bw.save(net, tmp_path / "a.safetensors")
    assert same(bw.load(tmp_path / "a.safetensors", floats()), net)


def test_equal_nets_give_equal_bytes(saved: tuple[Any, Path], tmp_path: Path) -> None:
    net, path = saved
    for i in range(5):
        bw.save(net, tmp_path / f"{i}", accuracy=[0.5, 0.25], note="hi", epoch=3)
        assert (tmp_path / f"{i}").read_bytes() == path.read_bytes()


def test_keys_are_strict(saved: tuple[Any, Path]) -> None:
    _, path = saved
    wide = floats()
    wide[4] = nn.Identity()
    wide.append(nn.BatchNorm1d(5))
    with pytest.raises(InputError) as error:
        bw.load(path, wide)
    text = str(error.value)
    assert "\n" not in text and "keys missing (" in text and "keys unexpected (" in text
    assert text.endswith("the file was trained with another model or recipe")


def test_wrong_shapes_are_one_line(saved: tuple[Any, Path]) -> None:
    _, path = saved
    other = floats()
    other[6] = nn.Linear(128, 6)
    with pytest.raises(InputError, match=r"size mismatch for 6\.weight") as error:
        bw.load(path, other)
    assert "\n" not in str(error.value)


def test_a_trained_file_needs_its_model(saved: tuple[Any, Path]) -> None:
    with pytest.raises(InputError, match="holds a trained net; give the model"):
        bw.load(saved[1])


def test_tied_and_overlapping_tensors(tmp_path: Path) -> None:
    for width in (3, 9):  # below and above what is worth an alias
        net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        net[2].weight = net[0].weight
        bw.save(net, tmp_path / "tied")
        twin = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        twin[2].weight = twin[0].weight
        assert same(bw.load(tmp_path / "tied", twin), net)
    base = torch.randn(40)
    write_tensors(
        tmp_path / "views", {"all": base, "part": base[:20], "again": base[5:], "one": base.reshape(40, 1)[3:4]}, {}
    )
    back, _ = read_tensors(tmp_path / "views")
    assert (
        torch.equal(back["all"], base) and torch.equal(back["again"], base[5:]) and torch.equal(back["part"], base[:20])
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(20).to(dtype), "b": torch.zeros(()).to(dtype), "c": torch.zeros(0, 3).to(dtype)}
    write_tensors(tmp_path / "t", tensors, {"k": "ä\n\x7f\x01"})
    back, metadata = read_tensors(tmp_path / "t")
    assert all(torch.equal(back[k], v) and back[k].dtype == dtype for k, v in tensors.items())
    assert metadata["k"] == "ä\n\x7f\x01"


def test_odd_strides_of_size_one_axes(tmp_path: Path) -> None:
    odd = torch.empty_strided((1,), (128,)).fill_(2.0)
    write_tensors(tmp_path / "t", {"odd": odd, "t": torch.randn(3, 4).T}, {})
    assert read_tensors(tmp_path / "t")[0]["odd"].tolist() == [2.0]


@pytest.mark.parametrize("name", ["recipe", "graph", "aliases", "format", "bitwright"])
def test_names_of_the_format_are_not_for_metadata(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"metadata {name}=\\S* is a name of the format itself"):
        bw.save(floats(), tmp_path / "a", **{name: "x"})
    assert not list(tmp_path.iterdir())


def test_metadata_that_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metadata is text, numbers, lists and tables"):
        bw.save(floats(), tmp_path / "a", what=object())


FAILURES = [
    ("save_file", OSError(errno.ENOSPC, "No space left on device")),
    ("save_file", SafetensorError("Error while serializing: I/O error: No space left on device")),
]


@pytest.mark.parametrize(("where", "error"), FAILURES, ids=["os", "safetensors"])
def test_a_full_disk_leaves_the_old_file(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    _, path = saved
    old = path.read_bytes()

    def fail(tensors: Any, target: str, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(tensor_files, where, fail)
    with pytest.raises(InputError, match="No space left on device"):
        bw.save(floats(), path)
    assert path.read_bytes() == old and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["fsync", "replace", "chmod"])
def test_any_later_failure_leaves_the_old_file(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _, path = saved
    old = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as m:
        m.setattr(os, where, fail)
        with pytest.raises(InputError, match="Input/output error"):
            bw.save(floats(), path)
    assert path.read_bytes() == old and [p.name for p in path.parent.iterdir()] == [path.name]


def test_ctrl_c_while_writing_leaves_no_rest(saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        bw.save(floats(), path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        bw.save(floats(), tmp_path / "nowhere" / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"save .*folder: "):
        bw.save(floats(), tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]

    def denied(**kw: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(InputError, match="Permission denied"):
        bw.save(floats(), tmp_path / "a")
    with pytest.raises(InputError):
        bw.save(floats(), tmp_path / ("x" * 300))


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a pickle was run')",))


def test_no_pickle_is_ever_run(tmp_path: Path) -> None:
    for name, payload in (("a.pt", pickle.dumps(Bomb())), ("b.safetensors", pickle.dumps(Bomb()))):
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            bw.load(tmp_path / name, floats())
    torch.save({"x": 1}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        bw.load(tmp_path / "c.pt", floats())


def test_missing_foreign_and_future_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        bw.load(tmp_path / "none")
    with pytest.raises(InputError, match="no such file"):
        bw.load(tmp_path)
    write_tensors(tmp_path / "foreign", {"a": torch.zeros(3)}, {})
    with pytest.raises(InputError, match="not one of bitwright's"):
        bw.load(tmp_path / "foreign", floats())
    write_tensors(tmp_path / "new", {"a": torch.zeros(3)}, {"bitwright": "trained", "format": "2"})
    with pytest.raises(InputError, match="format '2'; this version reads 1"):
        bw.load(tmp_path / "new", floats())


@pytest.mark.parametrize(
    "aliases",
    ["[", "[]", "3", '{"a":"zz"}', '{"a":[1]}', '{"a":{}}', "[" * 100_000, '{"a":null}'],
    ids=lambda a: a[:12],
)
def test_damaged_alias_lists(aliases: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"b": torch.zeros(3)}, {"bitwright": "trained", "format": "1", "aliases": aliases})
    with pytest.raises(InputError, match="its alias list is damaged"):
        bw.load(tmp_path / "t", floats())


@pytest.mark.parametrize("recipe", ["[[rule", 'a = "b"', "[[rule]]\nmatch = 3", '[[rule]]\nmatch = "*"\nw = "nope"'])
def test_damaged_recipes(recipe: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"b": torch.zeros(3)}, {"bitwright": "trained", "format": "1", "recipe": recipe})
    with pytest.raises(InputError):
        bw.load(tmp_path / "t", floats())


def test_damaged_trained_files(saved: tuple[Any, Path], tmp_path: Path) -> None:
    data = saved[1].read_bytes()
    for n in range(0, len(data), 997):
        (tmp_path / "cut").write_bytes(data[:n])
        with pytest.raises(InputError) as error:
            bw.load(tmp_path / "cut", floats())
        assert "\n" not in str(error.value)


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    bw.save(bw.apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [{"match": "*", "w": "ttq"}]), path)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match="size mismatch"):
        bw.load(path, other)
    assert type(other[0]) is nn.Linear and list(other.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_the_order_of_memory_is_kept(kind: Any, tmp_path: Path) -> None:
    order = torch.channels_last_3d if kind is nn.Conv3d else torch.channels_last
    net: Any
    net, fresh = (nn.Sequential(kind(8, 16, 3), kind(16, 4, 3)).eval() for _ in range(2))
    bw.apply(net, [{"match": "0", "w": ["mask", "bwn"]}])
    net[0].to(memory_format=order)
    bw.save(net, tmp_path / "net.safetensors")
    loaded: Any = bw.load(tmp_path / "net.safetensors", fresh)
    assert loaded[0].weight.is_contiguous(memory_format=order) and torch.equal(loaded[0].weight, net[0].weight)
    assert loaded[0].w.mask.mask.is_contiguous(memory_format=order) is net[0].w.mask.mask.is_contiguous(
        memory_format=order
    )
    assert loaded[1].weight.is_contiguous()


def test_a_damaged_list_of_orders_is_no_reason_to_refuse_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3))
    for text in ("{", "3", "[[1]]", '["0.bias", "none"]'):
        write_tensors(
            tmp_path / "a", dict(net.state_dict()), {"bitwright": "trained", "format": "1", "channels_last": text}
        )
        assert torch.equal(bw.load(tmp_path / "a", nn.Sequential(nn.Conv2d(2, 2, 3)))[0].weight, net[0].weight)  # type: ignore[index]
