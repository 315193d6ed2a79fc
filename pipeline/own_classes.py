"""Finds and makes the classes of the user's own that an ensemble file names, and says what is wrong with them.

A class is called with its `options` as keywords. What it has a parameter for it gets besides: `source`, the model's
folder, and what else is offered (`docs/own-classes.md`). What the file says comes before what is offered.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from engines.own_exits import no_exit
from pipeline.class_paths import ClassPath
from pipeline.settings import EnsembleSettings
from stages.blame import told

Place = tuple[str | int, ...]


def own_class(settings: EnsembleSettings, path: ClassPath, place: Place) -> type:
    """The class; `place` is where the file names it. Raises SettingsError."""

    def mistake(message: str) -> Exception:
        return settings.mistake(*place, message=message)

    folder = str(path.folder)
    if folder not in sys.path:  # behind the others: a file of the ensemble's folder replaces nobody's module
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(path.module)
    except ModuleNotFoundError as err:
        if err.name is not None and (path.module == err.name or path.module.startswith(err.name + ".")):
            where = f"on Python's path or in {folder}"
            raise mistake(f"no module {err.name} {where}: install it, set PYTHONPATH, or put it there") from err
        raise mistake(f"module {path.module} can't be imported: {told(err)}: install what it needs") from err
    except (Exception, SystemExit) as err:  # a module runs anything when it is imported
        # A SyntaxError says itself where it is.
        what = f"{type(err).__name__}: {err}" if isinstance(err, SyntaxError) else told(err)
        raise mistake(f"module {path.module} can't be imported: {what}: correct it") from err
    where = getattr(found, "__file__", None) or path.module
    for name in path.attribute.split("."):
        if not hasattr(found, name):
            raise mistake(f"{where} has no {path.attribute}: correct the name")
        found = getattr(found, name)
    if not isinstance(found, type):
        raise mistake(f"{path.attribute} of {where} is of type {type(found).__name__}, and no class: name a class")
    return found


def made(
    settings: EnsembleSettings, path: ClassPath, place: Place, options: Mapping[str, Any], offered: Mapping[str, Any]
) -> Any:
    """One of the class. Raises SettingsError, also where its constructor raises anything."""
    kind = own_class(settings, path, place)
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # made in C, and does not say
        parameters = ()  # type: ignore[assignment]
    wanted = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}
    keywords = {name: value for name, value in offered.items() if name in wanted} | dict(options)
    try:
        with no_exit():
            return kind(**keywords)
    except Exception as err:  # a user's own code raises anything
        given = f" with {', '.join(keywords)}" if keywords else ""
        message = f"{path} can't be made{given}: {told(err)}: correct its options, or the class"
        raise settings.mistake(*place, message=message) from err
