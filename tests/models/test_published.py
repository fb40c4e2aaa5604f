"""Files as torchvision and timm publish them, imitated: random weights of the real architecture under the same keys."""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from experiments.support_table import torchvision_names
from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.baselines import MultiTaskUNet, UNet
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.models.weights import COUNTER, find_head

FAMILIES = torchvision_names()
LARGE = {
    name for name in FAMILIES if torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] > 15_000_000
}
"""Of these, names, shapes and arguments only, on the meta device: no number is kept."""
RENAMED = ("densenet121", "mnasnet0_5", "vit_b_16", "googlenet", "inception_v3", "squeezenet1_1")
"""Published under other keys, with other heads or arguments: loaded in every way. Squeezenet stands for the others."""
HEADS = {"googlenet": ("fc",), "inception_v3": ("fc", "AuxLogits.fc")}

pytestmark = pytest.mark.usefixtures("zero_init")


def randomise(model: nn.Module) -> nn.Module:
    """Another value in every tensor, statistics and layers that begin with zeros or ones among them."""
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            block = torch.rand(min(value.numel(), 10_007)) + 0.5  # a prime, so no two rows are the same
            if value.ndim > 1:
                block = (block - 1) * (24 / value[0].numel()) ** 0.5
            whole = value.numel() - value.numel() % len(block)
            value.view(-1)[:whole].view(-1, len(block)).copy_(block)
            value.view(-1)[whole:].copy_(block[: value.numel() - whole])
        elif key.endswith(COUNTER):
            value.fill_(3)
    return model


def publish(name: str, **kwargs: object) -> OrderedDict[str, torch.Tensor]:
    """A state dict of a torchvision model with the names and gaps of published files."""
    arguments = {"init_weights": False, "aux_logits": True} if name in HEADS else {}
    model = randomise(torchvision.models.get_model(name, **arguments, **kwargs))
    state = model.state_dict()
    if name.startswith("mnasnet"):  # torchvision refuses this one without its version
        return state
    found = OrderedDict((k, v) for k, v in state.items() if not k.endswith(COUNTER))
    if name.startswith("densenet"):
        found = OrderedDict((re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k), v) for k, v in found.items())
    if name.startswith("vit"):
        for old, new in (("linear_1", "0"), ("linear_2", "3")):
            found = OrderedDict((re.sub(rf"\.mlp\.{new}\.", f".mlp.{old}.", k), v) for k, v in found.items())
    return found


@pytest.fixture
def server(monkeypatch):
    """In place of the server: what is put there is what torchvision fetches."""
    files: dict[str, OrderedDict[str, torch.Tensor]] = {}

    def fetch(url, *args, **kwargs):
        state = OrderedDict(files[url])
        state._metadata = getattr(files[url], "_metadata", None)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    return files


def plain_attributes(model: nn.Module) -> dict[tuple[str, str], object]:
    """Numbers, strings and tuples that its modules keep: what constructors decide beside the weights."""
    simple = (bool, int, float, str, tuple)
    return {
        (path, key): value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, simple)
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal numbers; on the meta device, which has none, equal shapes."""
    return one.shape == other.shape if other.is_meta else torch.equal(one, other)


def assert_same_state(found: nn.Module, expected: nn.Module, but: tuple[str, ...] = ()) -> None:
    left = {k: v for k, v in found.state_dict().items() if k.rpartition(".")[0] not in but}
    right = {k: v for k, v in expected.state_dict().items() if k.rpartition(".")[0] not in but}
    assert left.keys() == right.keys()
    assert all(same(left[key], right[key]) for key in left)


@pytest.mark.filterwarnings("ignore:The default weight initialization of")
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_of_torchvision_is_what_torchvision_makes_of_it(name, server, tmp_path):
    with torch.device("meta" if name in LARGE else "cpu"):
        check_family(name, server, tmp_path)


def check_family(name, server, tmp_path):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    server[weights.url] = publish(name)
    expected = torchvision.models.get_model(name, weights=weights)
    heads = HEADS.get(name, (find_head(expected, 1000),))
    few = create_classifier(name, "DEFAULT", classes=7)
    assert_same_state(few, expected, but=heads)
    assert find_head(few, 7) == heads[0]
    changed = {place for place, _ in plain_attributes(few).items() ^ plain_attributes(expected).items()}
    counts = {(head, key) for head in heads for key in ("out_features", "out_channels")}
    assert changed <= counts | {("", "num_classes")}
    del few
    file = tmp_path / Path(weights.url).name
    torch.save(server[weights.url], file)
    if name in RENAMED:
        found = create_classifier(name, "DEFAULT", classes=1000)
        assert_same_state(found, expected)
        assert plain_attributes(found) == plain_attributes(expected)
        del found
        assert_same_state(create_classifier(name, str(file), classes=7), expected, but=heads)
    renamed = file.rename(tmp_path / "mine.pth")
    kwargs = {"init_weights": False, "aux_logits": hasattr(expected, "AuxLogits")} if name in HEADS else None
    by_file = create_classifier(name, str(renamed), classes=7, encoder_kwargs=kwargs)
    assert_same_state(by_file, expected, but=heads)


def test_images_are_scaled_as_the_weights_expect(server, tmp_path, caplog):
    """GoogLeNet's; those of Inception: its attributes are torchvision's, see the families."""
    name = "googlenet"
    weights = torchvision.models.get_model_weights(name).DEFAULT
    server[weights.url] = publish(name)
    expected = torchvision.models.get_model(name, weights=weights).eval()
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(create_classifier(name, "DEFAULT", classes=1000).eval()(images), expected(images))
    five = create_classifier(name, "DEFAULT", classes=5)
    assert five.transform_input and five.fc.out_features == 5
    torch.testing.assert_close(five._transform_input(images), expected._transform_input(images))
    chosen = create_classifier(name, "DEFAULT", classes=5, encoder_kwargs={"transform_input": False})
    assert not chosen.transform_input
    # Images of other channels cannot be scaled: said in the log.
    grey = create_classifier(name, "DEFAULT", classes=5, in_channels=1)
    assert not grey.transform_input and "with 1 channels it does not" in caplog.text
    # A file of another name does not tell.
    torch.save(server[weights.url], tmp_path / "mine.pth")
    kwargs = {"init_weights": False}
    mine = create_classifier(name, str(tmp_path / "mine.pth"), classes=5, encoder_kwargs=kwargs)
    assert not mine.transform_input and "mine.pth" in caplog.text and "'transform_input': True" in caplog.text
    caplog.clear()
    kwargs["transform_input"] = True
    mine = create_classifier(name, str(tmp_path / "mine.pth"), classes=5, encoder_kwargs=kwargs)
    assert mine.transform_input and not caplog.text


@pytest.mark.parametrize(("name", "wanted"), [("googlenet", True), ("inception_v3", False)])
@pytest.mark.filterwarnings("ignore:auxiliary heads in the pretrained")
def test_auxiliary_heads_can_be_chosen(name, wanted, server):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta" if name in LARGE else "cpu"):
        server[weights.url] = state = publish(name)
        model = create_classifier(name, "DEFAULT", classes=5, encoder_kwargs={"aux_logits": wanted})
    own = [key for key in model.state_dict() if key.lower().startswith("aux")]
    assert model.aux_logits is wanted and bool(own) is wanted
    trunk = [key for key in own if key in state and len(state[key]) != 1000]
    assert bool(trunk) is wanted and all(torch.equal(model.state_dict()[key], state[key]) for key in trunk)


def test_an_exported_googlenet_warms_up_another(server, caplog):
    weights = torchvision.models.GoogLeNet_Weights.DEFAULT
    server[weights.url] = publish("googlenet")
    state = create_classifier("googlenet", "DEFAULT", classes=4).state_dict()
    kwargs = {"init_weights": False}
    with pytest.raises(InputError, match=r"missing: aux1.*auxiliary heads.*encoder_kwargs=\{'aux_logits': False\}"):
        HeatmapSegmenter("googlenet", classes=4, encoder_kwargs=kwargs).load_classifier_state(state)
    kwargs["aux_logits"] = False
    model = HeatmapSegmenter("googlenet", classes=4, encoder_kwargs=kwargs)
    model.load_classifier_state(state)
    assert "encoder_kwargs={'transform_input': True}" in caplog.text
    caplog.clear()
    model = HeatmapSegmenter("googlenet", classes=4, encoder_kwargs={**kwargs, "transform_input": True})
    model.load_classifier_state(state)
    assert not caplog.text
    output = model.eval()(torch.randn(1, 3, 64, 64), classes=[1])
    assert output.mask_logits.isfinite().all()


@pytest.fixture
def small_vit(monkeypatch):
    """torchvision's constructor of vision transformers, one narrow block instead of twelve."""
    build = torchvision.models.vision_transformer._vision_transformer
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    monkeypatch.setattr(
        torchvision.models.vision_transformer,
        "_vision_transformer",
        lambda **kwargs: build(**{**kwargs, **small}),
    )


def test_a_vision_transformer_of_torchvision_on_another_image_size(server, tmp_path, caplog, small_vit):
    weights = torchvision.models.ViT_B_16_Weights.DEFAULT
    server[weights.url] = state = publish("vit_b_16")
    kwargs = {"image_size": 64}
    model = create_classifier("vit_b_16", "DEFAULT", classes=5, encoder_kwargs=kwargs)
    expected = interpolate_embeddings(64, 16, OrderedDict(state))["encoder.pos_embedding"]
    torch.testing.assert_close(model.encoder.pos_embedding, expected)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    torch.save(state, tmp_path / "mine.pth")
    with caplog.at_level(logging.INFO, logger="tw_seg"):
        by_file = create_classifier("vit_b_16", str(tmp_path / "mine.pth"), classes=5, encoder_kwargs=kwargs)
    assert_same_state(by_file, model, but=("heads.head",))
    assert "positions of 197 patches are interpolated to 17" in caplog.text
    # Weights of larger images make a classifier of larger images, as torchvision's constructor does.
    larger = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    server[larger.url] = publish("vit_b_16", image_size=384)
    assert create_classifier("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", classes=5).image_size == 384


def test_a_published_file_of_other_arguments_is_refused(server):
    server[torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url] = publish("squeezenet1_0")
    with pytest.raises(InputError, match=r"torchvision squeezenet1_1 DEFAULT does not fit .* features.0.weight"):
        create_classifier("squeezenet1_1", "DEFAULT", classes=5)


def test_own_weights_under_a_published_name_load_as_they_are(tmp_path):
    own = create_classifier("squeezenet1_1", classes=5, in_channels=2)
    file = tmp_path / Path(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url).name
    torch.save(own.state_dict(), file)
    assert_same_state(create_classifier("squeezenet1_1", str(file), classes=5, in_channels=2), own)


def test_loading_draws_the_same_random_numbers(server):
    server[torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url] = publish("squeezenet1_1")
    heads = []
    for weights in (None, "DEFAULT"):
        torch.manual_seed(3)
        heads.append((create_classifier("squeezenet1_1", weights, classes=5).classifier[1].weight, torch.rand(1)))
    assert torch.equal(heads[0][0], heads[1][0]) and torch.equal(heads[0][1], heads[1][1])


ROWS = json.loads((Path(__file__).resolve().parents[2] / "docs" / "support.json").read_text())
NO_CLASSIFIERS = {"timm/gemma4_vit_167m_enc"}  # it returns tokens, and has no head
TIMM_FAMILIES = {
    row["name"]: row["parameters"]
    for row in ROWS
    if row["name"].startswith("timm/") and row["parameters"] and row["name"] not in NO_CLASSIFIERS
}
"""Those whose number of parameters is known: not of models that the support table could not make."""


def create_on_device(name: str) -> nn.Module:
    """A model of timm; earlier releases cannot make every one on the meta device."""
    try:
        return timm.create_model(name, num_classes=10)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        pytest.skip(f"timm {timm.__version__} makes no {name} on the meta device")


@pytest.mark.parametrize("name", TIMM_FAMILIES)
def test_each_family_of_timm_is_what_timm_makes_of_it(name, tmp_path):
    """The larger ones without numbers: of them the names and shapes, and which layer is the head."""
    large = TIMM_FAMILIES[name] > 3_000_000
    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        pytest.skip(f"timm {timm.__version__} has no {short}")
    file = tmp_path / ("weights.pth" if large else "weights.safetensors")
    with torch.device("meta" if large else "cpu"):
        published = randomise(create_on_device(short))
        state = {key: value for key, value in published.state_dict().items() if not key.endswith(COUNTER)}
        if large:
            torch.save(state, file)
        else:
            save_file({key: value.contiguous().clone() for key, value in state.items()}, file)
        # timm's own loader, with the file in place of its server.
        config = {"pretrained_cfg_overlay": {"file": str(file), "num_classes": 10}}
        expected = timm.create_model(short, pretrained=True, num_classes=4, **config).state_dict()
        found = create_classifier(name, str(file), classes=4).state_dict()
    assert found.keys() == expected.keys()
    loaded = [key for key in state if found[key].shape == state[key].shape]
    assert all(same(found[key], state[key]) for key in loaded)
    assert all(same(found[key], expected[key]) for key in loaded)
    heads = {key.rpartition(".")[0] for key in state if key not in loaded}
    assert heads and all(len(found[f"{head}.weight"]) == 4 for head in heads)


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # its use of torch
@pytest.mark.parametrize(
    ("name", "kwargs", "resized"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, "pos_embed"),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 256, "window_size": 8},
            "layers.0.blocks.0.attn.relative_position_bias_table",
        ),
    ],
)
def test_positions_of_timm_are_resized_by_timm(name, kwargs, resized, tmp_path, caplog):
    published = randomise(timm.create_model(name, num_classes=10))
    torch.save({"model": published.state_dict(), "epoch": 300}, tmp_path / "w.pth")
    config = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth"), "num_classes": 10}}
    try:
        expected = timm.create_model(name, pretrained=True, num_classes=4, **config, **kwargs)
    except KeyError:
        pytest.skip(f"timm {timm.__version__} takes such a file for one of JAX")
    with caplog.at_level(logging.INFO, logger="tw_seg"):
        found = create_classifier(f"timm/{name}", str(tmp_path / "w.pth"), classes=4, encoder_kwargs=kwargs)
    assert_same_state(found, expected, but=("head", "head.fc"))
    assert found.state_dict()[resized].shape != published.state_dict()[resized].shape
    assert "w.pth is not in timm's present form" in caplog.text


def test_older_names_of_timm_models(tmp_path):
    state = publish("densenet121", num_classes=9)
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    expected = timm.create_model("densenet121", num_classes=9)
    expected.load_state_dict(torchvision_densenet(state))
    for classes, but in ((9, ()), (4, ("classifier",))):
        assert_same_state(
            create_classifier("timm/densenet121", str(tmp_path / "w.pth"), classes=classes), expected, but
        )
    grey = create_classifier("timm/densenet121", str(tmp_path / "w.pth"), classes=4, in_channels=1)
    stem = "features.conv0.weight"
    torch.testing.assert_close(grey.state_dict()[stem], state[stem].sum(1, keepdim=True))


def torchvision_densenet(state: OrderedDict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key): value for key, value in state.items()}


def test_auxiliary_heads_that_timm_leaves_out(tmp_path):
    state = publish("inception_v3", num_classes=9)
    torch.save(state, tmp_path / "w.pth")
    found = create_classifier("timm/inception_v3", str(tmp_path / "w.pth"), classes=9).state_dict()
    assert not any(key.startswith("AuxLogits") for key in found)
    assert all(torch.equal(found[key], state[key]) for key in found if not key.endswith(COUNTER))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "dla46x_c"])
def test_partial_weights_of_timm_are_refused(name, tmp_path):
    own = timm.create_model(name, num_classes=4)
    left_out = next(
        key for key in reversed(own.state_dict()) if key.endswith("weight") and own.state_dict()[key].ndim > 1
    )
    state = {key: value for key, value in own.state_dict().items() if key != left_out}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w.pth does not fit.*1 missing: {left_out}.*timm's own loader cannot"):
        create_classifier(f"timm/{name}", str(tmp_path / "w.pth"), classes=4)
    torch.save(timm.create_model(name, num_classes=4, in_chans=1).state_dict(), tmp_path / "grey.pth")
    with pytest.raises(InputError, match=r"grey.pth does not fit.*\(\d+, 1, \d+, \d+\) instead of"):
        create_classifier(f"timm/{name}", str(tmp_path / "grey.pth"), classes=4)


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "timm/densenet121"])
def test_all_models_start_from_the_very_same_numbers(name, tmp_path):
    state = publish(name.removeprefix("timm/"), num_classes=5)
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    arguments = {"encoder_name": name, "encoder_weights": str(tmp_path / "w.pth"), "classes": 3}
    classifier = HeatmapSegmenter(**arguments).classifier.state_dict()
    loaded = torchvision_densenet(state)
    assert all(torch.equal(classifier[key], loaded[key]) for key in loaded if len(loaded[key]) != 5)
    plain = {key.replace(".", "_"): value for key, value in classifier.items()}
    for model in (UNet(**arguments), MultiTaskUNet(**arguments)):
        encoder = {
            re.sub("^(model_)+", "", key.replace(".", "_")): value
            for key, value in model.net.encoder.state_dict().items()
        }
        assert len(encoder) > 100 and all(torch.equal(value, plain[key]) for key, value in encoder.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.decoder.classifier."])
@pytest.mark.parametrize("model_class", [HeatmapSegmenter, UNet, MultiTaskUNet])
def test_a_warm_start_of_a_checkpoint(model_class, prefix):
    arguments = {"encoder_name": "timm/resnet10t", "classes": 3, "encoder_kwargs": {"channels": [8, 8, 16, 16]}}
    classifier = randomise(create_classifier(**arguments))
    state = {f"{prefix}{k}": v for k, v in classifier.state_dict().items() if not k.endswith(COUNTER)}
    if prefix.startswith("model."):
        state["model.log_scale"] = torch.ones(1)
    one, other = model_class(**arguments), model_class(**arguments)
    one.load_classifier_state(state)
    other.load_classifier_state(classifier.state_dict())
    other.load_state_dict({k: v for k, v in one.state_dict().items() if k.endswith(COUNTER)}, strict=False)
    trained = [key for key in one.state_dict() if "net.decoder" not in key and "segmentation_head" not in key]
    assert len(trained) > 50 and all(torch.equal(one.state_dict()[key], other.state_dict()[key]) for key in trained)


def test_the_background_of_a_prefixed_classifier_is_dropped():
    arguments = {"encoder_name": "timm/resnet10t", "encoder_kwargs": {"channels": [8, 8, 16, 16]}}
    state = create_classifier(**arguments, classes=4).state_dict()
    model = HeatmapSegmenter(**arguments, classes=4, background="constant")
    model.load_classifier_state({f"module.{key}": value for key, value in state.items()})
    assert torch.equal(model.classifier.fc.weight, state["fc.weight"][1:])
