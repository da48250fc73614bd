"""Options of a loader: from `--option KEY=VALUE` to the keyword arguments of its `load`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature

from pose_reloc.errors import DatasetError, SettingsError

_BOOLEANS = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}


def add_option_argument(parser) -> None:
    """Adds --option, which may be given several times."""
    parser.add_argument(
        '--option',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='an option of this kind of dataset, such as every=10; may be given several times',
    )


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Options as text; `open_dataset` gives them their types.

    Raises:
        SettingsError: a text has no '=' or names an option twice.
    """
    options = {}
    for text in texts:
        key, separator, value = text.partition('=')
        key = key.strip().replace('-', '_')
        if not separator or not key.isidentifier():
            raise SettingsError(f'--option {text!r}: expected KEY=VALUE, for example every=10')
        if key in options:
            raise SettingsError(f'--option {key} is given twice')
        options[key] = value.strip()
    return options


def checked_options(kind: str, load: Callable, options: Mapping) -> dict:
    """The options as keyword arguments of `load`: texts get the type of the default.

    Raises:
        DatasetError: `load` has no such option, or a text is no number where one is needed.
    """
    known = dict(list(signature(load).parameters.items())[1:])
    checked = {}
    for name, value in options.items():
        if name not in known:
            choice = f'choose from: {", ".join(known)}' if known else 'it has none'
            raise DatasetError(f'{kind} datasets have no option {name!r}; {choice}')
        default = known[name].default
        if isinstance(value, str) and isinstance(default, (bool, int, float)):
            value = _converted(name, value, type(default))
        checked[name] = value
    return checked


def _converted(name: str, text: str, kind: type):
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        what = {bool: 'true or false', int: 'a whole number', float: 'a number'}[kind]
        raise DatasetError(f'the option {name} must be {what}, got {text!r}') from None
