"""Every command of README, docs and help runs: with vlad-tiny in place of the encoder, and one epoch of training.

Some methods need a setting beside: AdaCLIP's prompts and APRIL-GAN's layers go no deeper than the encoder, and CLIP-ADA
looks at images of 1008 pixels, minutes of work.

A page's commands run in order in one folder, since one may use what another has left. What is not run to its end is
listed below with its reason, and still parsed.
"""

import itertools
import re
import shlex
import shutil
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tests_support import write_mvtec, write_picture
from trees import TREES, build

import vlad.loading
from vlad.cli import USAGE, main
from vlad.cli import VERBS as EVERY_VERB
from vlad.cli.calibrate import _EXAMPLES
from vlad.cli.help import HELP
from vlad.cli.parser import VladParser, _known_options
from vlad.cli.results import _EXAMPLES as PUBLISHED
from vlad.cli.verbs import OPTIONS, VERBS
from vlad.offline import save

ROOT = Path(__file__).parents[1]
GENERATED = {"_build", "datasets", "measurements"}  # folders of docs that its build writes
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not GENERATED & set(page.parts)),
]
WORDS = {"DATA": "data", "IMAGES": "photos/", "GOOD_IMAGES": "good/", "PATH": "photos/", "FOLDER": "photos/"}
NETWORK = {  # part of a command -> why it is only parsed
    "data get btad": "downloads a data set",
    "weights get": "downloads weights",
    "--model.weights": "reads the authors' weights, which are downloaded",
}
BACKBONE = ["--model.backbone", "vlad-tiny"]
SETTINGS = {
    "adaclip": ["--model.depth", "2"],
    "clip_ada": ["--model.full_size", "192"],
    "april_gan": ["--model.layers", "[3,6,9,12]"],
    "af_clip": ["--model.layers", "[3,6,9,12]"],
    "aa_clip": ["--model.layers", "[3,6,9,12]"],
    "bayes_pfl": ["--model.layers", "[3,6,9,12]"],
}
SLOW = {
    "reproduce adaclip --data": "trains AdaCLIP on whole data sets",
    "vlad serve ": "runs until it is stopped: tests/serve",
    "vlad app": "runs until it is stopped: tests/app",
    "--engine ": "an engine compiles the encoder, which takes long: tests/engines",
    "vlad export ": "seconds for each format: tests/export",
    "experiments/vlad_tiny": "an experiment of minutes: tests/test_experiments.py looks at its config",
}
UNSOUND = {  # part of a command -> why it may end with status 1
    "data check": "the data sets here are little trees, which are not complete",
    "data get mpdd": "tells how to get by hand what it cannot download",
}


def commands(text):
    """Returns the commands of a page's blocks; what follows two blanks, or a #, is a remark."""
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
        found = re.match(rf"\s*(?:\$ )?(vlad (?:{'|'.join(EVERY_VERB)})\b(?!:).*)", line)
        if found:
            yield re.split(r"\s{3,}|\s+# ", found.group(1))[0].strip()


def blocks(page):
    return "\n".join(re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


EXAMPLES = {
    **{page.relative_to(ROOT).as_posix(): list(commands(blocks(page))) for page in PAGES},
    "vlad --help": list(commands(USAGE)),
    "vlad calibrate --help": list(commands(_EXAMPLES)),
    "vlad results --help": list(commands(PUBLISHED)),
    **{f"vlad {verb} --help": examples for verb, (_, _, examples) in HELP.items()},
}
EXAMPLES = {source: found for source, found in EXAMPLES.items() if found}


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """A folder with all that the examples name."""
    root = tmp_path_factory.mktemp("examples")
    write_mvtec(root / "data" / "mvtec_ad", ("bottle",), count=4)
    for name, (tree, *_) in TREES.items():
        if name not in {"mvtec_ad", "headct"}:
            build(root / "data" / name, tree)
    for i in range(12):  # headct has no train split: references are held out of its normal test images
        write_picture(root / f"data/headct/folder/test/{'good' if i < 10 else 'dent'}/{i:03}.png", seed=50 + i)
    for folder, count in {
        "photos": 2,
        "good": 24,
        "my_parts/good": 10,
        "my_parts/bad": 2,
        "my_parts/train/good": 4,
    }.items():
        for i in range(count):
            write_picture(root / folder / f"{i}.png", seed=zlib.crc32(f"{folder}{i}".encode()))
    shutil.copytree(root / "my_parts", root / "parts", ignore=lambda *_: {"train"})
    save({}, root / "weights")
    Image.open(root / "photos" / "0.png").save(root / "photo.jpg")
    (root / "parts.csv").write_text("image_path,label\nphotos/0.png,good\nphotos/1.png,bad\n")
    (root / "plan.yaml").write_text(
        "datasets: [mvtec_ad]\nshots: [0, 1]\ncommon: {model: {backbone: vlad-tiny}, data: {num_workers: 0}}\n"
        "methods: [sdp]\n"
    )
    (root / "experiments").symlink_to(ROOT / "experiments")
    return root


@pytest.fixture
def folder(everything, tmp_path, monkeypatch):
    """That folder again, for one page: what is only read is linked."""
    for path in everything.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLAD_DATA", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the images are small
    yield tmp_path
    torch.set_num_threads(threads)


def reason(command, reasons):
    return next((why for part, why in reasons.items() if part in command), "")


def prepared(command):
    """Returns a command's arguments with vlad-tiny as the encoder."""
    arguments = [WORDS.get(word, word.replace("DATA/", "data/")) for word in shlex.split(command)[1:]]
    verb = arguments[0]
    if (
        verb in {*VERBS, "calibrate", "export"}
        and "--ckpt_path" not in arguments
        and not arguments[1].startswith("runs/")
    ):
        arguments += BACKBONE
        arguments += [word for method, words in SETTINGS.items() if method in " ".join(arguments[:3]) for word in words]
    if verb in VERBS:
        arguments += ["--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
        arguments += [] if "--data.root" in arguments or verb == "predict" else ["--data.root", "data"]
    return [*arguments, "--trainer.max_epochs", "1"] if verb == "fit" else arguments


def parsed(arguments, capsys):
    """Parses a command of the trainer's verbs without running it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, f"{shlex.join(arguments)}: {err}"
    assert "model" in yaml.safe_load(out)


@pytest.mark.slow
@pytest.mark.parametrize("source", EXAMPLES)
def test_examples_run(source, folder, capsys):
    for command in EXAMPLES[source]:
        arguments = prepared(command)
        if reason(command, {**NETWORK, **SLOW}):
            if arguments[0] in VERBS:
                parsed(arguments, capsys)
            continue
        if arguments[0] == "calibrate" and "RUN" in command:
            arguments = [*(word.replace("runs/sdp_plus/RUN", "sdp") for word in arguments), *BACKBONE]
        status = main(arguments)
        out, err = capsys.readouterr()
        right = {0, 1} if reason(command, UNSOUND) else {0, 4} if "--fail-on-anomaly" in command else {0}
        assert status in right, f"{source}: {command}\n{err}\n{out[-500:]}"
        assert "Traceback" not in err


PYTHON = {  # pages whose Python is run here -> what a page's earlier commands would have left
    "get-started": ["predict photos/ --output run --heatmaps.enabled false"],
    "export": ["export sdp --model.backbone vlad-tiny --image-size 96 --class-name part --format onnx --output out/"],
    "few_shot": [],
    "features": [],
    "heatmaps": ["predict photos/ --output out --maps png16 --heatmaps.enabled false"],
    "results": [],
}
ELSEWHERE = {
    "encoders",
    "export",
    "metrics",
    "pseudo_anomalies",
    "python",
    "write-a-method",
}  # by the tests of their packages


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON)
def test_python_of_pages_runs(page, folder, monkeypatch, capsys):
    plain = vlad.loading.load
    tiny = {"backbone": "vlad-tiny", "pretrained": None, "image_size": 96}
    monkeypatch.setattr(vlad.loading, "load", lambda name, **settings: plain(name, **{**tiny, **settings}))
    for command in PYTHON[page]:
        assert main(prepared(f"vlad {command}")) == 0
    code = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    exec("\n".join(code), {})


def test_no_page_has_python_that_is_not_run():
    pages = {page.stem for page in PAGES if re.search(r"^```python$", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert pages <= {*PYTHON, *ELSEWHERE, "README"}


def test_what_is_left_out_is_there():
    told = list(itertools.chain(*EXAMPLES.values()))
    for part in {**NETWORK, **SLOW, **UNSOUND}:
        assert any(part in command for command in told), part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_pages_name_are_options(page, options):
    text = page.read_text(encoding="utf-8")
    sections = "data|trainer|metrics|heatmaps|references|decisions|maps|report|features"
    for option in sorted(set(re.findall(rf"`?--((?:{sections})\.[a-z_]+)", text))):
        assert option in options, f"{page.name} names --{option}"


@pytest.fixture(scope="module")
def options():
    """Every option of every verb."""
    found = {option for option, verbs in OPTIONS.items() if verbs}
    for verb in VERBS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", open("/dev/null", "w"))  # noqa: SIM115
            with pytest.raises(SystemExit):
                main([verb, "--model", "sdp", "--print_config"])
        found |= _known_options(VladParser.family)
    return found
