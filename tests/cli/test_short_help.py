"""The short help against the parser: a second list of options must not drift from the first."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stdout

import pytest
import yaml

from tw_seg.cli import COMMANDS, format_help, main
from tw_seg.cli.predict import create_parser
from tw_seg.cli.short_help import EXAMPLES, describe_command, list_options
from tw_seg.data import DATASETS
from tw_seg.models.factory import MODELS

RUNS = [command for command in EXAMPLES if command != "predict"]
OTHER = {"--config", "--print_config"}  # no part of a configuration


def config(command: str) -> dict:
    """The command's default configuration."""
    with redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        main([command, "--print_config"])
    return yaml.safe_load(text.getvalue())


def test_names_and_defaults_of_predict_are_those_of_its_parser():
    parser = create_parser()
    arguments = {(one.option_strings or [str(one.metavar)])[-1]: one for one in parser._actions}
    for option in list_options("predict")["pictures"]:
        default = arguments.pop(option.name).default
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        assert option.default == ("" if default is None or default is False else str(default)), option.name
    assert set(arguments) == {"--help", "--precision"}  # the last for those who know it


@pytest.mark.parametrize("command", RUNS)
def test_names_and_defaults_are_those_of_the_parser(command):
    defaults = config(command)
    for option in [option for group in list_options(command).values() for option in group]:
        if option.name in OTHER:
            continue
        value = defaults
        for key in option.name.removeprefix("--").split("."):
            assert key in value, option.name
            value = value[key]
        assert option.default == ("" if value is None else str(value)), option.name


def test_fit_lists_the_options_that_people_use(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "nowhere.yaml", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text == describe_command("fit", COMMANDS["fit"].summary) + "\n"
    groups = list_options("fit")
    assert 20 <= sum(map(len, groups.values())) <= 22
    for title, group in groups.items():
        assert f"\n{title}:\n" in text
        assert all(f"  {option.name} " in text for option in group)
    assert max(map(len, text.splitlines())) <= 120
    assert all(name in text for name in (*MODELS, *DATASETS))


def test_the_example_of_predict_parses():
    program, command, *arguments = shlex.split(EXAMPLES["predict"])
    assert (program, command) == ("tw-seg", "predict")
    assert create_parser().parse_args(arguments).pictures == ["my_pictures"]


@pytest.mark.parametrize("command", RUNS)
def test_the_example_parses(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/one/config.yaml").write_text("run_dir: runs/one\n")
    (tmp_path / "runs/one/checkpoints/best.ckpt").touch()
    assert EXAMPLES[command] in describe_command(command, COMMANDS[command].summary)
    program, *arguments = shlex.split(EXAMPLES[command])
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert (program, stop.value.code or 0) == ("tw-seg", 0)


def test_all_options_are_more():
    text = format_help("fit")
    assert "usage: tw-seg [options] fit" in text or "usage: tw-seg fit" in text
    assert all(option in text for option in ("--trainer.benchmark", "--best.monitor", "--model.lr", "--print_config"))
    assert text.count("\n  --") > 100


def test_help_all_is_that_text(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.lr=1", "--help-all"])
    assert (stop.value.code, capsys.readouterr().out) == (0, format_help("fit"))
