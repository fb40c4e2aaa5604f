from __future__ import annotations

import inspect

import pytest

from tests.models.contract import ENCODER
from tw_seg.errors import InputError
from tw_seg.models.factory import MODELS, create_model

COMMON = ["encoder_name", "encoder_weights", "in_channels", "classes", "encoder_kwargs"]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_by_name(name):
    assert type(create_model(name, **ENCODER)) is MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_the_same_first_arguments(name):
    parameters = inspect.signature(MODELS[name]).parameters
    assert list(parameters)[: len(COMMON)] == COMMON
    after_the_second = list(parameters.values())[2:]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in after_the_second)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(InputError, match=r"'u-net'.*heatmap, unet, multitask_unet"):
        create_model("u-net", **ENCODER)


def test_an_unknown_argument_lists_the_arguments():
    with pytest.raises(InputError, match=r"'decoder_width'.*decoder_channels"):
        create_model("unet", **ENCODER, decoder_width=3)


def test_a_missing_argument_is_named():
    with pytest.raises(InputError, match="missing a required.* 'classes'"):
        create_model("unet", encoder_name="resnet18")


@pytest.mark.parametrize("name", ["composite", "read_out", "tie_weights", "seed", "schedule"])
def test_an_argument_of_the_decoder_is_told_its_place(name):
    with pytest.raises(
        InputError, match=rf"{name}'\. It takes .*decoder_kwargs.*\. {name} belongs in decoder_kwargs\.$"
    ):
        create_model("heatmap", **ENCODER, **{name: None})
    with pytest.raises(InputError, match="It takes") as error:
        create_model("unet", **ENCODER, **{name: None})
    assert "belongs" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("chunk_size", "chunk_size belongs in schedule, in decoder_kwargs"),
        ("own_rules", "own_rules is custom_rules, in decoder_kwargs"),
    ],
)
def test_an_argument_further_inside_is_told_its_place(name, place):
    for kwargs in ({name: 2}, {"decoder_kwargs": {name: 2}}):
        with pytest.raises(InputError, match=rf"'{name}'.*[;.] {place}\.?$"):
            create_model("heatmap", **ENCODER, **kwargs)
