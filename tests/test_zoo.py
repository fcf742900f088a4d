"""The zoo: cards and files belong together, nets load offline and answer as their cards say, every mistake is one line."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright import zoo
from bitwright.engine.files import file_bytes
from bitwright.training.evaluate import evaluate
from bitwright.zoo import find

PACKED = zoo.list("packed")


def there(name: str) -> bool:
    """Whether the data set of a net is at hand."""
    return all(row.status == "ok" for row in bw.data.check(zoo.card(name).data))


@pytest.mark.few("digits-mlp-dorefa-w2a2", "digits-mlp-zero_one")
@pytest.mark.parametrize("name", PACKED)
def test_a_packed_net_answers_as_its_card_says(name: str) -> None:
    if not there(name):
        pytest.skip(f"{zoo.card(name).data} is not here")
    card = zoo.card(name)
    found = evaluate(zoo.load(name), zoo.data(card), normalize=card.normalize)
    assert (round(found.top1 * found.images), found.images) == (card.right, card.images)


def test_a_circuit_ready_net_and_a_digits_net_are_always_there() -> None:
    assert "digits-mlp-zero_one" in PACKED
    recipe = bw.Recipe.load(zoo.card("digits-mlp-zero_one").recipe)
    assert any("zero_one" in str(rule.slots) for rule in recipe.rules)


def test_the_package_stays_small_and_every_file_has_its_card() -> None:
    files = [p for p in find.NETS.iterdir() if p.suffix == ".safetensors"]
    assert sum(p.stat().st_size for p in find.NETS.iterdir()) < 1_000_000
    assert {p.stem for p in files} <= set(zoo.list())
    beside = list(find.CHECKOUT.glob("*.safetensors"))
    assert len(beside) <= 8 and all(p.stat().st_size <= 1_200_000 for p in beside)


@pytest.mark.parametrize("name", zoo.list())
def test_a_card_is_true_of_its_file(name: str) -> None:
    card = zoo.card(name)
    assert card.name == name and name.startswith(f"{card.data}-") and card.right <= card.images
    assert card.form == "packed" or card.trained is None
    path = find.NETS / card.file
    path = path if path.is_file() else find.CHECKOUT / card.file
    if not path.is_file():
        pytest.skip("a float net lies in the repository, not in the package")
    assert path.stat().st_size == card.bytes and hashlib.sha256(path.read_bytes()).hexdigest() == card.sha256


@pytest.mark.parametrize("name", PACKED)
def test_a_card_compares_files(name: str, call: Any) -> None:
    """`float_bytes` is the size of a file with the float net of the same topology, no two tensors of it equal."""
    card = zoo.card(name)
    options = {key: value for key, value in card.model.items() if key != "name"}
    net = bw.models.create(card.model["name"], card.classes, in_channels=card.input[0], size=card.input[1], **options)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.normal_()
    assert card.float_bytes is not None and card.float_bytes == file_bytes(net)
    if card.parent is not None:  # the file of a net that normalizes its own input says so
        parent = zoo.card(card.parent)
        less = card.float_bytes < parent.bytes and card.normalize != parent.normalize
        assert card.float_bytes == parent.bytes or less
    assert f"{card.float_bytes / card.bytes:.1f}x smaller" in " ".join(call("zoo", name)[1].split())


def test_a_wrong_name_lists_the_names() -> None:
    with pytest.raises(
        bw.InputError, match=r"no such net. Nearest: digits-mlp-zero_one. All: .*digits-mlp-zero_one"
    ) as e:
        zoo.load("digits-mlp-zeroone")
    assert "\n" not in str(e.value)


def test_a_form_that_a_net_does_not_have() -> None:
    with pytest.raises(bw.InputError, match="is a packed net, not float"):
        zoo.load("digits-mlp-zero_one", form="float")
    with pytest.raises(bw.InputError, match="forms are packed, float"):
        zoo.load("digits-mlp-zero_one", form="packet")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A zoo of two nets of its own: a float one, whose file lies in tmp_path/float, and a damaged packed one."""
    torch.manual_seed(3)
    net = bw.models.create("resnet20", in_channels=1, size=8, width=0.25)
    folder = tmp_path / "float"
    folder.mkdir()
    size = bw.save(net, folder / "digits-resnet20-float.safetensors")
    raw = (folder / "digits-resnet20-float.safetensors").read_bytes()
    card = zoo.card("digits-mlp-zero_one")
    made = card.model_copy(
        update={
            "name": "digits-resnet20-float", "form": "float", "model": {"name": "resnet20", "width": 0.25}, "binarize": False, "normalize": True,
            "bytes": size, "sha256": hashlib.sha256(raw).hexdigest(), "trained": None, "recipe": "", "float_bytes": None,
        }
    )  # fmt: skip
    package = tmp_path / "nets"
    package.mkdir()
    good = (find.NETS / card.file).read_bytes()
    (package / card.file).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for c in (made, card):
        (package / f"{c.name}.json").write_text(c.model_dump_json())
    monkeypatch.setattr(find, "NETS", package)
    monkeypatch.setattr(find, "CHECKOUT", tmp_path / "none")
    monkeypatch.delenv(find.VARIABLE, raising=False)
    find.cards.cache_clear()
    yield folder
    find.cards.cache_clear()


def test_a_damaged_file_is_one_line(nets: Path) -> None:
    with pytest.raises(bw.InputError, match="is damaged or another net") as e:
        zoo.load("digits-mlp-zero_one")
    assert e.value.code == "zoo-damaged" and "\n" not in str(e.value)


def test_a_damaged_card_is_one_line(nets: Path) -> None:
    (find.NETS / "digits-resnet20-float.json").write_text('{"name": 3}')
    find.cards.cache_clear()
    with pytest.raises(bw.InputError, match=r"the card digits-resnet20-float.json is damaged") as e:
        zoo.list()
    assert "\n" not in str(e.value)


def test_a_float_net_by_folder_by_variable_and_missing(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(bw.InputError, match="set BITWRIGHT_ZOO") as e:
        zoo.load("digits-resnet20-float")
    assert e.value.code == "zoo-missing"
    given = zoo.load("digits-resnet20-float", root=nets)
    monkeypatch.setenv(find.VARIABLE, str(nets))
    again = zoo.load("zoo:digits-resnet20-float", form="float")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(given(x), again(x)) and not again.training
    monkeypatch.delenv(find.VARIABLE)
    nets.rename(nets.parent / "zoo")
    monkeypatch.chdir(nets.parent)  # an installed package used inside a checkout
    assert torch.equal(given(x), zoo.load("digits-resnet20-float")(x))


def test_a_float_net_by_url_with_its_checksum(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(nets)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert zoo.load("digits-resnet20-float", root=url)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
        (tmp_path / "cache/bitwright/zoo/digits-resnet20-float.safetensors").unlink()
        (nets / "digits-resnet20-float.safetensors").write_bytes(b"another file")
        with pytest.raises(bw.InputError) as e:
            zoo.load("digits-resnet20-float", root=url)
        assert e.value.code == "zoo-fetch" and "\n" not in str(e.value)
    finally:
        server.shutdown()
        server.server_close()


def experiment(model: str = "resnet20", **more: Any) -> bw.experiment.Experiment:
    stage = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-9}}
    return bw.experiment.Experiment.model_validate(
        {
            "data": {"name": "digits", "limit": 64, "limit_test": 32, "batch": 32},
            "model": {"name": model, **more.pop("options", {})},
            "stage": [{**stage, **more}],
            "log": {"tensorboard": False},
        }
    )


def test_training_starts_from_the_zoo(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(find.VARIABLE, str(nets))
    bw.train(experiment(options={"width": 0.25, "weights": "zoo:digits-resnet20-float"}), tmp_path / "run")
    start = zoo.load("digits-resnet20-float").state_dict()["conv1.weight"]
    ended = bw.load(tmp_path / "run/model.safetensors", bw.models.create("resnet20", in_channels=1, size=8, width=0.25))
    torch.testing.assert_close(ended.state_dict()["conv1.weight"], start, atol=1e-6, rtol=0)
    with pytest.raises(bw.InputError, match="is a packed net, not float"):
        bw.train(experiment(options={"weights": "zoo:digits-mlp-zero_one"}), tmp_path / "other")


def test_a_teacher_of_another_topology(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(find.VARIABLE, str(nets))
    teacher = {"source": "zoo:digits-resnet20-float", "weight": 1.0}
    result = bw.train(experiment("mlp", options={"hidden": 8, "depth": 1}, teacher=teacher), tmp_path / "run")
    assert result.images == 32


def test_a_teacher_gets_the_pixels_that_it_learned_on(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student reads pixels as codes, the teacher normalized ones."""
    from bitwright.training import teacher as module

    monkeypatch.setenv(find.VARIABLE, str(nets))
    seen: list[tuple[float, float]] = []
    forward = module.Normalized.forward

    def spy(self: Any, x: torch.Tensor) -> torch.Tensor:
        inner = (x - self.mean) / self.std
        seen.append((float(x.min()), float(inner.min())))
        return forward(self, x)

    monkeypatch.setattr(module.Normalized, "forward", spy)
    rule = [{"match": "first", "w": {"part": "uniform", "bits": 8}, "x": "input8"}]
    bw.train(experiment(options={"width": 0.25}, teacher="zoo:digits-resnet20-float", rule=rule), tmp_path / "run")
    assert seen and all(low >= 0 and inner < 0 for low, inner in seen)


def test_a_teacher_of_another_data_set_is_refused(nets: Path, tmp_path: Path) -> None:
    card = zoo.card("digits-resnet20-float").model_copy(update={"data": "mnist"})
    (find.NETS / "digits-resnet20-float.json").write_text(card.model_dump_json())
    find.cards.cache_clear()
    with pytest.raises(bw.InputError, match="was trained on mnist, this experiment is on digits"):
        bw.train(experiment(teacher="zoo:digits-resnet20-float"), tmp_path / "run")


def test_the_command(call: Any) -> None:
    code, out, _ = call("zoo")
    assert code == 0 and all(name[:12] in out for name in zoo.list())
    code, out, _ = call("zoo", "digits-mlp-zero_one", "--check")
    card = zoo.card("digits-mlp-zero_one")
    assert code == 0 and f"{100 * card.accuracy:.2f} %" in out and "as the card says" in out
    code, _, err = call("zoo", "nothing")
    assert code == 2 and err.strip().count("\n") == 0 and "All: " in err
    code, _, err = call("zoo", "--check")
    assert code == 2 and "which net" in err


def test_a_float_stage_is_normalized_also_where_a_later_one_reads_codes() -> None:
    from bitwright.runs.build import normalized

    two = bw.experiment.load("cifar10-resnet20-bwn-a8")
    assert normalized(two, 1) and not normalized(two, 2) and not normalized(two)
