from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from tw_seg.cli.deep_keys import merge_deep_keys, split_deep_keys

DECODER = "--model.model_kwargs.decoder_kwargs"


def command(model_kwargs: dict[str, Any] | None = None) -> None:
    """Takes a mapping."""


@pytest.fixture
def parser() -> ArgumentParser:
    fit = ArgumentParser(exit_on_error=False)
    fit.add_argument("--config", action="config")
    fit.add_function_arguments(command, "model")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subcommands().add_subcommand("fit", fit)
    return parser


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: {model_kwargs: {compress: 2.0, decoder_kwargs: {read_out: [a, b], schedule: {chunk_size: 2}}}}\n"
    )
    return f"--config={path}"


def parse(parser: ArgumentParser, args: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = parser.parse_args(merge_deep_keys(parser, args))["fit"]["model"]["model_kwargs"]
    return found


@pytest.mark.parametrize("joined", [True, False])
def test_a_deep_key_is_set_alone_and_read_as_yaml(parser: ArgumentParser, config: str, joined: bool) -> None:
    option = [f"{DECODER}.tie_weights=false"] if joined else [f"{DECODER}.tie_weights", "false"]
    assert parse(parser, ["fit", config, *option]) == {
        "compress": 2.0,
        "decoder_kwargs": {"read_out": ["a", "b"], "schedule": {"chunk_size": 2}, "tie_weights": False},
    }


def test_several_keys_at_several_depths(parser: ArgumentParser, config: str) -> None:
    options = [f"{DECODER}.schedule.recompute=true", f"{DECODER}.read_out=[0.5]", f"{DECODER}.composite_kwargs.e=1e-3"]
    found = parse(parser, ["fit", *options, config, "--model.model_kwargs.scale=2"])
    assert found == {
        "compress": 2.0,
        "scale": 2,
        "decoder_kwargs": {
            "read_out": [0.5],
            "schedule": {"chunk_size": 2, "recompute": True},
            "composite_kwargs": {"e": 0.001},
        },
    }


def test_without_a_config_the_mappings_are_made(parser: ArgumentParser) -> None:
    found = parse(parser, ["fit", f"{DECODER}.schedule.chunk_size=3"])
    assert found == {"decoder_kwargs": {"schedule": {"chunk_size": 3}}}


def test_the_printed_config_has_the_key(
    parser: ArgumentParser, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(parser, ["fit", config, f"{DECODER}.seed=contrastive", "--print_config"])
    assert "seed: contrastive" in capsys.readouterr().out


def test_other_options_stay_as_they_are() -> None:
    args = ["fit", "--model.model_kwargs.scale=2", "--trainer.a_kwargs.b.c=1", "--data.size", "3", f"{DECODER}.last"]
    assert split_deep_keys(args) == (args, [])  # the last one has no value: the parser says so
