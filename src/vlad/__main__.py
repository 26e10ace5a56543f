"""``python -m vlad`` is the ``vlad`` command."""

from vlad.cli import command

if __name__ == "__main__":
    command()
