"""Inputs: what a user names on the command line as files to predict, and where their results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from datamodules import DataError
from datamodules.paths import files_of, is_remote, stem_of
from visionsft.errors import WriteError

LIST_SUFFIX = ".txt"
"""Of a file that names inputs, one a line."""


def find_inputs(
    given: Sequence[str | Path], *, suffixes: Sequence[str], whole_folders: bool = False
) -> list[str]:
    """Files, the images directly in folders, what globs match, what lists name, and remote paths as they are.

    Each once, in the order given. suffixes: of the images in folders, in lower case. whole_folders: a folder is an
    input itself.
    """
    found: list[str] = []
    for each in map(str, given):
        found += [each] if whole_folders and Path(each).is_dir() else _expand(each, suffixes)
    if not found:
        raise DataError("no input was given")
    return list(dict.fromkeys(found))


def stem(path: str) -> str:
    """The file's name without suffix, by which its results are named."""
    return stem_of(path)


def _expand(given: str, suffixes: Sequence[str]) -> list[str]:
    if is_remote(given) or len(files_of(given)) > 1:
        return [given]
    path = Path(given)
    if path.is_dir():
        return _in_folder(path, suffixes)
    if path.is_file() and path.suffix.lower() == LIST_SUFFIX:
        return _in_list(path, suffixes)
    if path.exists():
        return [given]
    if glob.has_magic(given):
        files = [match for match in sorted(glob.glob(given, recursive=True)) if os.path.isfile(match)]
        if not files:
            raise DataError(f"{given}: no file matches")
        return files
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, names, n=1)
    raise DataError(
        f"{given}: no such file" + (f"; nearest: {path.with_name(nearest[0])}" if nearest else "")
    )


def _in_folder(folder: Path, suffixes: Sequence[str]) -> list[str]:
    inside = sorted(
        str(path) for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()
    )
    if not inside:
        raise DataError(
            f"{folder}: no image in this folder ({', '.join(suffixes)}); folders in it aren't searched"
        )
    return inside


def _in_list(path: Path, suffixes: Sequence[str]) -> list[str]:
    """Lines that are neither empty nor a comment; relative paths are relative to the list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a list of inputs in UTF-8 (byte {error.start})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name.lower().endswith(LIST_SUFFIX):
            raise DataError(f"{path}, line {number}: {name} is a list; lists of lists aren't read")
        try:
            found += _expand(name if is_remote(name) else str(path.parent / name), suffixes)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    return found


def check_targets(targets: Mapping[str, Mapping[str, Path]], *, overwrite: bool, resume: bool) -> None:
    """Nothing is predicted if one result would take the place of another, of an input, or of what exists.

    targets: the files of each input, by the kind of result. resume: what exists is kept.
    """
    owners: dict[Path, str] = {}
    for path, files in targets.items():
        for file in files.values():
            if file in owners:
                raise DataError(
                    f"{owners[file]} and {path} would both become {file}; predict them into two folders"
                )
            owners[file] = path
    own = {Path(path).resolve() for path in targets if not is_remote(path)}
    if swallowed := [file for file in owners if file.resolve() in own]:
        raise WriteError(f"{swallowed[0]}: is an input; choose another folder for the predictions")
    there = _existing(owners)
    if there and not (overwrite or resume):
        raise WriteError(
            f"{there[0]}: exists ({len(there)} of {len(owners)} files do); --overwrite replaces them, "
            "--resume keeps them and does the rest"
        )


def _existing(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.exists()]
