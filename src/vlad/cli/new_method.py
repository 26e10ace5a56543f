"""``vlad new-method``: a plug-in package with a method that works and tests that pass, to be changed."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

from vlad.errors import OptionError, OutputError

__all__ = ["run", "write_package"]

_FILES = {  # template -> file of the package
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "gitignore.txt": ".gitignore",
    "src/method.py.txt": "src/{name}/__init__.py",
    "tests/test_method.py.txt": "tests/test_{name}.py",
}


def _checked(text: str) -> str:
    """Returns a method's name as it is registered and imported.

    Raises:
        OptionError: It cannot be a module's name, or belongs to something else.
    """
    from vlad.registry import canonical, discover

    name = canonical(text)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith("_") or len(name) > 60:
        raise OptionError(
            f"'{text}' cannot be a method's name: take letters a to z, digits and _, a letter first, at most 60, such "
            "as my_method"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise OptionError(f"'{text}' is a word of Python's: take another name, such as {name}_method")
    if name in discover():
        raise OptionError(f"a method is named '{name}' already (vlad methods lists them): take another name")
    if name in sys.stdlib_module_names or _imports(name):
        raise OptionError(f"a Python package is named '{name}' already: take another name, such as {name}_method")
    return name


def _imports(name: str) -> bool:
    """Returns whether a module of this name is installed; a bare folder is none."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return True  # something of this name is there, and is broken
    return spec is not None and spec.origin is not None


def write_package(name: str, folder: Path) -> list[Path]:
    """Writes a plug-in package, whole or not at all.

    Args:
        name: The method's name, lower case with ``_``.
        folder: The package's folder, which is new or empty.

    Returns:
        The files, relative to the folder.

    Raises:
        OutputError: There is something in the folder, or it cannot be written.
    """
    from vlad import __version__
    from vlad.files import output_errors, scratch_folder

    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise OutputError(f"{folder} exists and is not empty; nothing was overwritten: give another --output DIR")
    words = {
        "name": name,
        "distribution": name.replace("_", "-"),
        "class_name": "".join(word.capitalize() for word in name.split("_") if word),
        "version": __version__,
    }
    templates = resources.files("vlad") / "templates" / "method"
    written = [Path(target.format(name=name)) for target in _FILES.values()]
    with scratch_folder(folder) as partial, output_errors(folder):
        for template, file in zip(_FILES, written, strict=True):
            text = Template(templates.joinpath(*template.split("/")).read_text(encoding="utf-8")).substitute(words)
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            (partial / file).write_text(text, encoding="utf-8")
        partial.rename(folder)  # onto nothing or an empty folder; anything else there is an error
    return written


def run(arguments: list[str]) -> int:
    """Writes the package and says what to do next."""
    parser = argparse.ArgumentParser(
        prog=f"vlad {arguments[0]}",
        description="Writes a plug-in package with a method that works, and tests that pass: then change it.",
        epilog="examples:\n  vlad new-method my_method\n  vlad new-method text-contrast --output plugins/contrast",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the method's name: letters a to z, digits and _")
    parser.add_argument("-o", "--output", metavar="DIR", help="the package's folder, new or empty (default NAME)")
    options = parser.parse_args(arguments[1:])
    name = _checked(options.name)
    folder = Path(options.output or name)
    for file in write_package(name, folder):
        print(f"  {folder / file}")
    print(
        f"a method that works, to be changed. Next:\n"
        f"  pip install -e {folder}\n"
        f"  pytest {folder}\n"
        f"  vlad test --model {name} --model.backbone vlad-tiny --data.test synthetic"
    )
    return 0
