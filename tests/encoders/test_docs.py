"""What docs/encoders.md shows runs and prints what it says."""

import re
from pathlib import Path


def test_the_examples_run(capsys):
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(code, {"__name__": "example"})
    printed = capsys.readouterr().out
    shapes = re.findall(r"torch\.Size\(.*?\)", code)
    assert len(shapes) == 3
    assert re.findall(r"torch\.Size\(.*?\)", printed) == shapes
