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
