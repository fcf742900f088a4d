"""apply: every sentence of contract 2.1, and nothing half done."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError
from bitwright.parts import forget, part
from bitwright.transforms import Recipe, apply, recipe_of
from bitwright.transforms.unwrap import unwrap


def mlp() -> Any:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def names(model: nn.Module, slot: str = "w") -> dict[str, str]:
    return {
        n: getattr(getattr(m, slot), "part_name", "float")
        for n, m in model.named_modules()
        if isinstance(m, bw.nn.SlotLayer)
    }


class Net(nn.Module):
    """A user's own conv-norm-ReLU net; layers defined in another order than executed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


X = torch.linspace(-1, 1, 2 * 2 * 6 * 6).reshape(2, 2, 6, 6)


# -- rules -------------------------------------------------------------------------------------------
def test_later_rules_override_slot_by_slot() -> None:
    net: Any = apply(
        mlp(),
        [
            {"match": "*", "w": "bwn", "x": "sign"},
            {"match": "2", "w": "ttq"},
            {"match": "4", "x": "float"},
        ],
    )
    assert names(net) == {"0": "bwn", "2": "ttq", "4": "bwn"}
    assert names(net, "x") == {"0": "sign", "2": "sign", "4": "float"}


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError) as error:
        apply(Net(), [{"match": "*", "w": "bwn"}, {"match": "layer5.*", "w": "bwn"}])
    assert str(error.value) == 'apply Net: rule 1 match="layer5.*" selects no layer. Names here: fc, conv1, conv2'


def test_an_optional_rule_may_match_nothing() -> None:
    net: Any = apply(mlp(), [{"match": "*shortcut*", "w": "bwn", "optional": True}, {"match": "0", "w": "bwn"}])
    assert names(net) == {"0": "bwn"}


def test_kind_narrows() -> None:
    net: Any = apply(Net(), [{"match": "*", "kind": "Linear", "w": "bwn"}])
    assert names(net) == {"fc": "bwn"}
    with pytest.raises(InputError, match="Kinds here: Conv2d, Linear"):
        apply(Net(), [{"match": "*", "kind": "conv", "w": "bwn"}])


def test_match_is_case_sensitive_glob() -> None:
    with pytest.raises(InputError, match="Nearest: conv1"):
        apply(Net(), [{"match": "Conv1", "w": "bwn"}])
    assert set(names(apply(Net(), [{"match": "conv[12]", "w": "bwn"}]))) == {"conv1", "conv2"}


def test_first_and_last_are_execution_order() -> None:
    net: Any = apply(
        Net(),
        [{"match": "*", "w": "bwn"}, {"match": "first", "w": "ttq"}, {"match": "last", "w": "float"}],
        X,
    )
    assert names(net) == {"conv1": "ttq", "conv2": "bwn"}
    assert type(net.fc) is nn.Linear  # all slots empty: the layer stays PyTorch's own


def test_first_of_a_kind_and_behind_an_embedding() -> None:
    rules = [{"match": "first", "kind": "Linear", "w": "bwn"}]
    assert names(apply(Net(), rules, X)) == {"fc": "bwn"}
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert names(apply(net, [{"match": "first", "w": "bwn"}], torch.tensor([[1, 2]]))) == {"1": "bwn"}
    with pytest.raises(InputError, match="selects no layer"):
        apply(Net(), [{"match": "first", "kind": "Conv3d", "w": "bwn"}], X)


def test_first_needs_an_example_or_a_sequential() -> None:
    with pytest.raises(InputError, match='rule 0 match="first" means execution order: give an example input'):
        apply(Net(), [{"match": "first", "w": "bwn"}])
    assert names(apply(mlp(), [{"match": "first", "w": "bwn"}, {"match": "last", "w": "ttq"}])) == {
        "0": "bwn",
        "4": "ttq",
    }


def test_first_of_a_sequential_that_starts_with_an_own_module() -> None:
    with pytest.raises(InputError, match="give an example"):
        apply(nn.Sequential(Net(), nn.Linear(3, 3)), [{"match": "first", "w": "bwn"}])
    net: Any = apply(nn.Sequential(Net(), nn.Linear(3, 3)), [{"match": "last", "w": "bwn"}])
    assert names(net) == {"1": "bwn"}


def test_resolved_names_are_kept_on_the_model() -> None:
    rules = [{"match": "*", "w": "bwn"}, {"match": "first", "w": "float"}, {"match": "last", "w": "float"}]
    net: Any = apply(Net(), rules, X)
    assert [r.match for r in net.bitwright_recipe.rules] == ["*", "conv1", "fc"]
    again: Any = apply(Net(), net.bitwright_recipe)  # no example needed any more
    assert names(again) == names(net)


def test_a_layer_called_first_is_hit_by_its_glob() -> None:
    net: Any = nn.Sequential()
    net.add_module("a", nn.Linear(2, 2))
    net.add_module("last", nn.Linear(2, 2))
    net.add_module("b", nn.Linear(2, 2))
    assert names(apply(net, [{"match": "[l]ast", "w": "bwn"}])) == {"last": "bwn"}


# -- what happens to layers --------------------------------------------------------------------------
def test_parameters_stay_the_same_objects_and_keys() -> None:
    net: Any = Net()
    before, keys = dict(net.named_parameters()), set(net.state_dict())
    apply(net, [{"match": "*", "w": "bwn"}])
    assert all(before[n] is p for n, p in net.named_parameters()) and set(net.state_dict()) == keys


def test_every_occurrence_of_a_shared_module_becomes_one_new_object() -> None:
    shared = nn.Linear(4, 4)
    net: Any = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(4, 2)), "c": shared})
    apply(net, [{"match": "b.0", "w": "bwn"}])
    assert net["a"] is net["b"][0] is net["c"] and net["a"].w is not None


def test_slot_layers_are_reslotted_in_place() -> None:
    net: Any = apply(mlp(), [{"match": "*", "w": "bwn", "x": "sign"}])
    layers, kept = list(net), net[0].x
    apply(net, [{"match": "*", "w": "ttq"}, {"match": "0", "w": "float"}])
    assert all(a is b for a, b in zip(net, layers, strict=True))
    assert net[0].w is None and net[2].w.part_name == "ttq"
    assert net[0].x is kept  # slots that no rule names stay
    assert len(net.bitwright_recipe.rules) == 3


def test_parts_follow_the_mode_and_the_double_type_of_their_layer() -> None:
    net: Any = apply(mlp().eval().double(), [{"match": "0", "x": ["norm", "sign"]}])
    assert not net[0].x.training
    assert net(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64


def test_the_root_itself_cannot_be_replaced() -> None:
    with pytest.raises(InputError, match="the model itself is a Linear"):
        apply(nn.Linear(2, 2), [{"match": "*", "w": "bwn"}])
    layer: Any = bw.nn.Linear(2, 2)
    assert apply(layer, [{"match": "*", "w": "bwn"}]) is layer and layer.w is not None


def test_a_model_without_layers() -> None:
    with pytest.raises(InputError, match="no layer that a recipe could change"):
        apply(nn.ReLU(), "bwn")


class MyConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_a_subclass_is_skipped_under_star_and_refused_when_named() -> None:
    def net() -> Any:
        return nn.Sequential(MyConv(2, 2, 1), nn.Conv2d(2, 2, 1))

    with pytest.warns(BitwrightWarning, match=r"stays float: 0 \(MyConv, subclass of Conv2d with its own forward\)"):
        assert names(apply(net(), [{"match": "*", "w": "bwn"}])) == {"1": "bwn"}
    with pytest.raises(InputError) as error:
        apply(net(), [{"match": "0", "w": "bwn"}])
    assert str(error.value) == (
        "apply: 0 (MyConv, subclass of Conv2d with its own forward) cannot be replaced (rule 0). "
        'Use bw.nn layers inside it, or match="0" w="float" x="float"'
    )
    silent = [{"match": "?", "w": "bwn"}, {"match": "0", "w": "float"}]  # the remedy works
    assert names(apply(net(), silent)) == {"1": "bwn"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "parametrized", "pruned"])
def test_computed_weights_are_refused(how: str) -> None:
    from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

    layer: nn.Module = nn.Linear(3, 3)
    if how == "pruned":
        prune.random_unstructured(layer, "weight", 0.5)
    else:
        layer = {
            "weight_norm": weight_norm,
            "spectral_norm": spectral_norm,
            "parametrized": parametrizations.weight_norm,
        }[how](layer)
    with pytest.raises(InputError, match="its weight is computed by"):
        apply(nn.Sequential(layer, nn.Linear(3, 3)), [{"match": "0", "w": "bwn"}])


# -- fused paths -------------------------------------------------------------------------------------
def encoder() -> nn.TransformerEncoder:
    layer: Any = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.parametrize("padded", [False, True])
def test_fused_encoder_path_is_switched_off(padded: bool) -> None:
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    net: Any = encoder()
    plain = copy.deepcopy(net)
    rules = [{"match": "*linear*", "w": "bwn"}]
    apply(net, rules, x)
    assert torch.backends.mha.get_fastpath_enabled()  # apply put it back
    with torch.no_grad():
        for layer in plain.layers:  # the slow road over the quantized weights
            for linear in (layer.linear1, layer.linear2):
                linear.weight.copy_(bw.make_part("bwn")(linear.weight.clamp(-1, 1)))
        got = net(x, src_key_padding_mask=mask)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            wanted = plain(x, src_key_padding_mask=mask)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    keep = slice(None) if mask is None else ~mask
    torch.testing.assert_close(got[keep], wanted[keep])


def test_attention_projection_is_refused() -> None:
    with pytest.raises(InputError, match="its weight is read directly by MultiheadAttention"):
        apply(encoder(), [{"match": "*out_proj", "w": "bwn"}])


# -- the example -------------------------------------------------------------------------------------
class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x), self.b.weight) + 0 * self.c.bias


def test_a_layer_that_is_never_called_stays_float_with_a_word() -> None:
    net: Any = Unused()
    x = torch.randn(3, 2)
    with pytest.warns(BitwrightWarning, match=r"stays float: b \(Linear, the example never reaches it.*; c \(Linear"):
        apply(net, [{"match": "*", "w": "bwn"}], x)
    assert names(net) == {"a": "bwn"} and type(net.b) is type(net.c) is nn.Linear
    again: Any = apply(Unused(), net.bitwright_recipe)  # the saved recipe leaves them out without an example too
    assert names(again) == {"a": "bwn"}


@pytest.mark.parametrize("match", ["b", "[bc]"])
def test_a_rule_for_layers_that_are_never_called_is_an_error(match: str) -> None:
    net = Unused()
    for verb in (apply, bw.plan):
        with pytest.raises(InputError, match=r"rule 1 is for b .Linear., but the example never reached it") as error:
            verb(net, [{"match": "a", "w": "bwn"}, {"match": match, "w": "bwn"}], torch.zeros(1, 2))
        assert error.value.layer == "b"
    assert type(net.a) is type(net.b) is nn.Linear and not hasattr(net, "bitwright_recipe")


class Guarded(nn.Module):
    """Calls its layer only as long as that is torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if type(self.a) is nn.Linear else x


def test_a_replaced_layer_that_was_not_called_is_an_error() -> None:
    net = Guarded()
    with pytest.raises(InputError, match=r"a .Linear. was replaced but the example never reached it"):
        apply(net, [{"match": "*", "w": "bwn"}], torch.zeros(1, 2))
    assert type(net.a) is nn.Linear and not hasattr(net, "bitwright_recipe")


# -- nothing silent ----------------------------------------------------------------------------------
def test_a_net_without_one_layer_that_gets_a_part_is_an_error() -> None:
    subclasses = nn.Sequential(MyConv(2, 2, 1), MyConv(2, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    rules = [{"match": "*", "w": "bwn"}, {"match": "last", "w": "float"}]
    with pytest.raises(InputError) as error:
        apply(subclasses, rules)
    assert str(error.value) == (
        "apply: not one layer gets a part, so the net would stay as it is: 0 (MyConv, subclass of Conv2d with its own "
        "forward), 1 (MyConv, subclass of Conv2d with its own forward), 3 (Linear, left float by rule 1)"
    )
    assert bw.plan(subclasses, rules).warnings == [str(error.value).replace("apply", "plan")]
    optional = [{"match": "*shortcut*", "optional": True, "w": "bwn"}]
    with pytest.raises(InputError, match=r"0 \(Linear, no rule is for it\), 2 .* and 1 more"):
        apply(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)), optional)
    net: Any = apply(mlp(), "bwn")
    apply(net, [{"match": "*", "w": "float", "x": "float"}])  # to take parts away is no such error
    assert set(names(net).values()) == {"float"}


def test_hooks_of_a_layer_go_on_working() -> None:
    net: Any = mlp()
    net[0].register_forward_pre_hook(lambda m, i: (i[0] * 0,))
    handle = net[4].register_forward_hook(lambda m, i, o: o * 0 + 3)
    seen: list[str] = []
    net[0].register_full_backward_hook(lambda m, i, o: seen.append(type(m).__module__))
    net[0].register_load_state_dict_pre_hook(lambda m, state, *rest: seen.append(type(m).__module__))
    x = torch.randn(4, 6)
    notes = [r.note for r in bw.plan(net, [{"match": "*", "w": "bwn"}], x).rows]
    assert notes == ["forward pre-hook, backward hook: kept", "", "forward hook: kept"]
    apply(net, [{"match": "*", "w": "bwn"}], x)
    assert names(net) == {"0": "bwn", "2": "bwn", "4": "bwn"}
    assert torch.equal(net(x), torch.full((4, net[4].out_features), 3.0))
    assert torch.equal(net[0](x), net[0].bias.expand(4, -1))
    net[0](x.requires_grad_()).sum().backward()
    net.load_state_dict(net.state_dict())
    assert seen == ["bitwright.nn.layers"] * 2
    handle.remove()  # the handle that the user holds is that of the new layer too
    assert not torch.equal(net(x), torch.full((4, net[4].out_features), 3.0))


def test_a_forward_replaced_on_the_instance_leaves_the_layer_float() -> None:
    net: Any = mlp()
    was = net[0].forward
    net[0].forward = lambda x: -was(x)
    x = torch.randn(4, 6)
    want = net[0](x)
    assert bw.plan(net, [{"match": "*", "w": "bwn"}], x).rows[0].runs == "your code"
    with pytest.warns(BitwrightWarning, match=r"0 \(Linear, its forward was replaced on the instance\)"):
        apply(net, [{"match": "*", "w": "bwn"}], x)
    assert names(net) == {"2": "bwn", "4": "bwn"} and torch.equal(net[0](x), want)


def test_a_layer_that_was_compiled_in_place() -> None:
    net: Any = mlp()
    net[0].compile(backend="eager")
    x = torch.randn(4, 6)
    net(x)
    apply(net, [{"match": "*", "w": "bwn"}])
    with torch.no_grad():
        net[0].weight.fill_(0.25)
        net[0].bias.zero_()
    assert torch.equal(net[0](x), net[0].op(x, net[0].w(net[0].weight), None)) and net[0]._compiled_call_impl is None


def test_a_hook_on_an_activation_or_a_norm_is_not_lost() -> None:
    net: Any = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Hardtanh(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    net[1].register_forward_hook(lambda m, i, o: o.clamp(max=0.5))
    apply(net, [{"match": "2", "w": "bwn", "x": "sign"}], torch.zeros(1, 2, 3, 3))
    assert type(net[1]) is nn.Hardtanh and float(net[1](torch.ones(1))) == 0.5
    net[3].register_forward_hook(lambda m, i, o: o * 2)
    for verb in (apply, bw.plan):
        with pytest.raises(InputError, match="takes over the BatchNorm 3, and its forward hook would be lost"):
            verb(net, [{"match": "2", "gate": {"part": "fbs", "keep": 0.5}}], torch.zeros(1, 2, 3, 3))


def test_wrapped_models_are_applied_to_the_net_inside() -> None:
    from torch.optim.swa_utils import AveragedModel

    x = torch.randn(2, 6)
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager"), AveragedModel):
        wrapped: Any = wrap(mlp())
        wrapped(x)  # compiled by now, without a hook
        assert apply(wrapped, [{"match": "0", "w": "bwn"}], x) is wrapped
        assert names(unwrap(wrapped)) == {"0": "bwn"}
        assert bw.recipe_of(wrapped).rules == bw.recipe_of(unwrap(wrapped)).rules
        rows = bw.plan(wrapped, [{"match": "2", "w": "bwn"}], x).rows
        assert [r.name for r in rows] == [r.name for r in bw.walk(wrapped, x)] == ["0", "2", "4"]
        assert bw.cost(wrapped, x).totals == bw.cost(unwrap(wrapped), x).totals
        bw.apply(wrapped, [{"match": "4", "x": {"part": "uniform", "bits": 8}}])
        bw.calibrate(wrapped, [x])
        part: Any = unwrap(wrapped).get_submodule("4.x")
        assert part.high > 0
        groups = bw.param_groups(wrapped, 0.1, 1e-4)
        assert [g["name"] for g in groups] == ["weights", "latents", "plain"]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        with bw.attach(wrapped, optimizer):
            first: Any = unwrap(wrapped).get_submodule("0")
            first.weight.data.fill_(7.0)
            optimizer.step()
            assert float(first.weight.detach().max()) == 1
        with bw.count_macs(wrapped) as macs, torch.no_grad():
            wrapped(x)
        assert macs.total == macs.dense > 0
        assert list(macs.per_layer) == ["0", "2", "4"] and macs.samples == 2


def test_an_example_of_the_wrong_shape_is_one_line() -> None:
    with pytest.raises(InputError, match="apply Net: the model does not run on this example"):
        apply(Net(), "bwn", torch.zeros(1, 5, 6, 6))


@pytest.mark.parametrize(
    "verb", [lambda net, x: apply(net, "bwn", x), lambda net, x: bw.plan(net, "bwn", x), bw.cost, bw.walk]
)
def test_a_single_image_without_a_batch_axis_is_told(verb: Any) -> None:
    with pytest.raises(
        InputError, match=r"does not run on this example: .*\[2, 6, 6\] is one sample, give example\[None\]"
    ):
        verb(Net(), torch.zeros(2, 6, 6))
    with pytest.raises(InputError) as error:
        verb(Net(), torch.zeros(5, 6, 6))
    assert "sample" not in str(error.value)


def test_apply_changes_no_statistics_and_no_modes() -> None:
    net: Any = Net().train()
    net.bn1.eval()
    apply(net, [{"match": "*", "w": "bwn"}], X)
    assert net.bn1.num_batches_tracked == 0 and net.training and net.bn2.training and not net.bn1.training


# -- sign after a ReLU -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "x", ["sign", [{"part": "dropout", "p": 0.1}, "sign"], {"part": "uniform", "bits": 2, "signed": True}]
)
def test_a_signed_part_behind_a_relu_is_an_error(x: Any) -> None:
    net: Any = Net()
    with pytest.raises(InputError) as error:
        apply(net, [{"match": "conv2", "x": x}], X)
    text = str(error.value)
    for word in ("conv2 takes the", "relu in the model's forward", 'x = ["norm", ', 'activation="identity"'):
        assert word in text
    assert error.value.layer == "conv2" and type(net.conv2) is nn.Conv2d


def test_the_error_names_the_module_of_the_relu() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"2 takes the sign of the output of 1 \(relu\)"):
        apply(net, [{"match": "2", "x": "sign"}], torch.zeros(1, 2))


@pytest.mark.parametrize(
    "x",
    [
        ["norm", "sign"],
        {"part": "dorefa_a", "bits": 2},
        {"part": "uniform", "bits": 8, "signed": True},
        {"part": "sign_magnitude", "bits": 2},
    ],
)
def test_no_error_with_a_norm_or_an_unsigned_part(x: Any) -> None:
    apply(Net(), [{"match": "conv2", "x": x}], X)


@pytest.mark.parametrize("name", ["xnor", "w1a1", "bwn", "dorefa-w1a2", "w8a8"])
def test_stock_recipes_avoid_it(name: str) -> None:
    net: Any = apply(Net(), name, X)
    assert names(net)["conv2"] != "float"


# -- norms taken over --------------------------------------------------------------------------------
@pytest.fixture
def owner() -> Iterator[None]:
    @part("norm_owner", "gate")
    class NormOwner(nn.Module):
        """Toy gate. source: none"""

        owns_norm = True

        def __init__(self) -> None:
            super().__init__()
            self.norm: nn.Module = nn.Identity()

        def take_norm(self, norm: nn.Module) -> None:
            self.norm = norm

        @staticmethod
        def norm_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {f"norm.{key}": value for key, value in state.items()}

        def forward(self, op: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            return self.norm(op(x, w, b))

    yield
    forget("norm_owner")


@pytest.mark.usefixtures("owner")
def test_a_part_takes_over_the_norm_and_its_keys() -> None:
    net: Any = Net().eval()
    nn.init.normal_(net.bn1.running_mean)
    old, wanted = copy.deepcopy(net.state_dict()), net(X)
    apply(net, [{"match": "conv1", "gate": "norm_owner"}], X)
    assert type(net.bn1) is nn.Identity and isinstance(net.conv1.gate.norm, nn.BatchNorm2d)
    torch.testing.assert_close(net(X), wanted)
    assert "conv1.gate.norm.weight" in net.state_dict() and "bn1.weight" not in net.state_dict()
    for again in (net, copy.deepcopy(net)):
        nn.init.zeros_(again.conv1.gate.norm.weight)
        again.load_state_dict(old)  # the float checkpoint still loads
        torch.testing.assert_close(again(X), wanted)
        again.load_state_dict(again.state_dict())
    # the recipe remembers which norm it was, so that loading needs no example
    assert recipe_of(net).rules[0].norm == "bn1"
    fresh: Any = apply(Net().eval(), Recipe.from_toml(recipe_of(net).to_toml()))
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(fresh(X), wanted)


@pytest.mark.usefixtures("owner")
def test_no_norm_found_is_an_error() -> None:
    with pytest.raises(InputError, match="the only reader of its output; there is none"):
        apply(Net(), [{"match": "fc", "gate": "norm_owner"}], X)
    with pytest.raises(InputError, match="give an example"):
        apply(Net(), [{"match": "conv1", "gate": "norm_owner"}])


# -- tied weights, projection, errors ----------------------------------------------------------------
def tied() -> Any:
    net: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


def test_two_different_parts_on_one_weight_are_refused() -> None:
    net: Any = tied()
    with pytest.raises(InputError, match="0 and 1 share one weight, but slot w wants bwn and ttq"):
        apply(net, [{"match": "0", "w": "bwn"}, {"match": "1", "w": "ttq"}])
    assert type(net[0]) is nn.Linear
    with pytest.warns(BitwrightWarning, match="0 shares its weight with 1, which reads it as a float"):
        apply(net, [{"match": "0", "w": "bwn"}])
    with pytest.raises(InputError, match="share one weight"):
        apply(net, [{"match": "1", "w": {"part": "bwn", "granularity": "layer"}}])
    apply(net, [{"match": "1", "w": "bwn"}])
    assert net[0].weight is net[1].weight


def test_projection_runs_once_at_apply_and_never_in_forward() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(2, 1))
    weight = torch.tensor([[0.5, 4.5]])
    with torch.no_grad():
        net[0].weight.copy_(weight)
    apply(net, [{"match": "0", "w": "xnor"}])
    assert net[0].weight.tolist() == [[-1.0, 1.0]]  # centered: -2, 2, then clipped
    with torch.no_grad():
        net[0].weight.copy_(weight)
    net[0](torch.ones(1, 2))
    assert net[0].weight.tolist() == weight.tolist()
    apply(net, [{"match": "1", "w": "bwn"}])  # another layer: the first is not projected again
    assert net[0].weight.tolist() == weight.tolist()


def test_projection_of_a_transposed_convolution_is_written_back() -> None:
    net: Any = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2))
    with torch.no_grad():
        net[0].weight.mul_(100)
    apply(net, [{"match": "0", "w": "bwn"}], torch.zeros(1, 4, 2, 2))
    assert net[0].weight.abs().max() == 1


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (
            [{"match": "*", "w": "bwn"}, {"match": "fc", "w": {"part": "dorefa_w", "bits": 9}}],
            "rule 1: fc: part dorefa_w: bits=9",
        ),
        (
            [{"match": "*", "w": "bwn"}, {"match": "conv2", "x": {"part": "input8", "mean": [0.1, 0.2]}}],
            "2 means for 4 channels",
        ),
        ([{"match": "*", "w": ["bwn", "ttq"]}], "two quantizers"),
    ],
)
def test_an_error_leaves_the_model_alone(rules: list[dict[str, Any]], text: str) -> None:
    net: Any = Net()
    before, rng = [(n, id(m)) for n, m in net.named_modules()], torch.get_rng_state()
    with pytest.raises(InputError, match=text):
        apply(net, rules)
    assert [(n, id(m)) for n, m in net.named_modules()] == before and torch.equal(rng, torch.get_rng_state())


def test_an_error_in_the_forward_check_restores_reslotted_layers() -> None:
    @part("explodes", "x")
    class Explodes(nn.Module):
        """source: none"""

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("boom")

    try:
        net: Any = apply(mlp(), [{"match": "0", "w": "bwn"}])
        kept = net[0].w
        with pytest.raises(RuntimeError, match="boom"):
            apply(net, [{"match": "*", "w": "ttq"}, {"match": "2", "x": "explodes"}], torch.zeros(1, 6))
        assert net[0].w is kept and type(net[2]) is nn.Linear
    finally:
        forget("explodes")


def test_copy_pickle_and_train_after_apply() -> None:
    net: Any = apply(Net(), "xnor", X)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(again.eval()(X), net.eval()(X))
        assert again.bitwright_recipe == net.bitwright_recipe


@pytest.mark.parametrize(
    "recipe",
    [
        [{"match": "*", "w": "bwn"}],
        [{"match": "*", "w": "bwn", "x": "sign"}],
        [{"match": "*", "x": {"part": "pact", "bits": 2}}, {"match": "a", "gate": "fbs"}],
    ],
    ids=["weights", "signs", "clips and a gate that takes the norm"],
)
def test_apply_runs_the_model_twice_at_most(recipe: Any) -> None:
    """Once before anything is changed, whatever is to be found out, and once to see that the new layers are called."""
    net = nn.Sequential(
        OrderedDict(a=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4), clip=nn.Hardtanh(), b=nn.Conv2d(4, 2, 1))
    )
    if "gate" in recipe[-1]:
        net.clip = nn.ReLU()
    calls: list[int] = []
    net.register_forward_pre_hook(lambda module, args: calls.append(1))
    example = torch.randn(2, 2, 5, 5)
    bw.plan(net, recipe, example)
    assert len(calls) == 1
    bw.apply(net, recipe, example)
    assert len(calls) == 3
    assert getattr(net.clip, "idle", False) == (recipe[0] != {"match": "*", "w": "bwn"})  # and it found the readers
    assert isinstance(net.norm, nn.Identity) == ("gate" in recipe[-1])
