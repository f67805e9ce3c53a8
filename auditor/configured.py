"""Where the parser looks besides the command line: GRADAUDIT_* variables and the project's file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from auditor.config import SPOKEN, check_environment, read_configuration, variable
from auditor.errors import UsageError
from auditor.gate import Accepted

AUDITING = ("scan", "simulate")  # the commands that may be set up elsewhere


@dataclass(frozen=True)
class OwnSettings:
    """What was set elsewhere than on the command line."""

    accepted: tuple[Accepted, ...] = ()
    flags: tuple[str, ...] = ()  # as the command line would say it, for whoever repeats the run


def listening(app: typer.Typer) -> Any:
    """The parser of the app; the options of an audit also listen to their variables."""
    parser: Any = typer.main.get_command(app)
    for name in AUDITING:
        for option in _options(parser.commands[name]):
            option.envvar, option.show_envvar = variable(_name(option)), False
    return parser


def configure(context: typer.Context) -> None:
    """Read the file of the working directory, for the command that is about to be parsed.

    Raises UsageError as `read_configuration` and `check_environment` do.
    """
    parser: Any = context.command
    invoked = str(context.invoked_subcommand)
    command = parser.commands[invoked]
    options = {_name(option): option for option in _options(command)}
    every = {_name(o) for name in AUDITING for o in _options(parser.commands[name])} | SPOKEN
    check_environment(os.environ, every)
    settings = read_configuration(Path(), every)
    found = {}
    for name, value in (settings.options or {}).items():
        if name in options:  # scan and simulate do not take the same
            found[options[name].name] = _checked(options[name], name, value, settings.file)
    context.default_map = {invoked: found}
    context.obj = settings.accepted


def own_settings(context: typer.Context) -> OwnSettings:
    """What the running command has from elsewhere."""
    command: Any = context.command
    flags: list[str] = []
    for option in _options(command):
        source = context.get_parameter_source(option.name)
        value = context.params.get(option.name)
        if source is not None and source.name in ("ENVIRONMENT", "DEFAULT_MAP"):
            flags += _spelled(option, value)
    return OwnSettings(context.obj or (), tuple(flags))


def _spelled(option: Any, value: object) -> list[str]:
    if value is False:
        return list(option.secondary_opts[:1])
    return [f"--{_name(option)}"] if value is True else [f"--{_name(option)}", str(value)]


def _options(command: Any) -> list[Any]:
    """The options that may be set elsewhere."""
    return [p for p in command.params if p.param_type_name == "option" and _name(p) not in SPOKEN]


def _name(option: Any) -> str:
    names: list[str] = option.opts
    return max(names, key=len).lstrip("-")


def _checked(option: Any, name: str, value: object, file: str | None) -> object:
    """A switch is true or false, and nothing else is."""
    if option.is_flag != isinstance(value, bool):
        raise UsageError(
            expected=f"{'true or false' if option.is_flag else 'a value'} at {name} of {file}",
            found=repr(value)[:80],
            todo="Mend it.",
        )
    return value if option.is_flag else str(value)
