"""The help that fits a screen: the options that people use, grouped, with examples; ``--help-all`` prints the rest."""

from __future__ import annotations

__all__ = ["HELP", "verb_help"]

_METHOD = {
    "--model NAME": "vlad methods lists them",
    "--ckpt_path RUN": "a run folder or checkpoint: its method, settings and weights",
    "--model.backbone NAME": "another encoder: an open_clip name, timm:NAME, local-dir:FOLDER, vlad-tiny",
    "--model.image_size N": "side of the images in pixels, as the method sees them",
}
_DATA = "a name of vlad datasets, a folder with good/ and bad/, or a table"
_TILED = {"--tile N": "score large images by tiles of N pixels, at their own resolution (docs/tiling.md)"}
_ENGINE = {"--engine NAME": "openvino or onnx for the frozen encoder on the CPU; --engine.precision bf16"}
_LABELLED = {
    "--data.root DIR": "the folder that holds the data sets (or VLAD_DATA)",
    "--data.categories A,B": "these categories alone",
    "--shots K": "compare with K good training images per category",
    "--references PATH": "compare with your own good images",
}
_MACHINE = {
    "--weights-dir DIR": "weights from a folder of vlad weights get, none from a network",
    "--data.batch_size N": "images at a time (8)",
    "--trainer.accelerator A": "cpu, gpu, …; --trainer.devices 2 for two processes",
    "--trainer.precision P": "32-true, 16-mixed, bf16-mixed, …",
}

# verb -> usage, groups of options (option -> what it does), examples
HELP: dict[str, tuple[str, list[tuple[str, dict[str, str]]], list[str]]] = {
    "predict": (
        "vlad predict PATH … [options]       score your own images: folders, files, patterns or a table",
        [
            ("method", {**_METHOD, "--model NAME": "vlad methods lists them; sdp by default", **_TILED}),
            (
                "images",
                {
                    "--class-name TEXT": 'what is in them, for the prompts: "metal part"',
                    "--references PATH": "a folder of good images, one with a folder per category, or a list of files",
                },
            ),
            (
                "results",
                {
                    "--output DIR": "the run folder (a new one by default); if it exists, the run resumes",
                    "--decision FILE": "call images normal or anomalous: a file of vlad calibrate, or a number",
                    "--fail-on-anomaly": "exit status 4 where an image is anomalous",
                    "--maps FORMAT": "raw maps too: npy or png16",
                    "--heatmaps.enabled false": "no heat maps; --heatmaps.limit 20 for some",
                },
            ),
            ("machine", {**_MACHINE, **_ENGINE}),
        ],
        [
            "vlad predict photos/",
            'vlad predict photos/ --class-name "metal part" --references good/ --output out/',
            "vlad calibrate sdp good/ --output decision.json",
            "vlad predict parts.csv --decision decision.json --fail-on-anomaly",
        ],
    ),
    "test": (
        "vlad test --data.test DATA [options]       metrics, scores and heat maps on images of known label",
        [
            ("method", {**_METHOD, **_TILED}),
            (
                "data",
                {
                    "--data.test DATA": _DATA,
                    **_LABELLED,
                },
            ),
            (
                "results",
                {
                    "--output DIR": "the run folder; a new one by default",
                    "--decision FILE": "count false alarms and misses of a decision: a file or a number",
                    "--maps FORMAT": "raw maps too: npy or png16",
                    "--heatmaps.enabled false": "no heat maps; --heatmaps.limit 20 for some of each category",
                    "--metrics.mode exact": "keep every pixel's score; streaming by default",
                },
            ),
            ("machine", {**_MACHINE, **_ENGINE}),
        ],
        [
            "vlad test --model sdp --data.root data --data.test mvtec_ad --shots 4",
            "vlad test --model sdp --data.test my_parts/",
        ],
    ),
    "fit": (
        "vlad fit --model NAME --data.train DATA [options]       train a method",
        [
            (
                "method",
                {
                    **_METHOD,
                    "--model NAME": "vlad methods lists them; vlad fit --model.help NAME its settings",
                    "--ckpt_path RUN": "go on with a run that was stopped",
                    "--model.lr RATE": "learning rate; the published one by default",
                },
            ),
            (
                "data",
                {
                    "--data.train DATA": _DATA,
                    "--data.val DATA": "validate on this after each epoch",
                    "--data.root DIR": "the folder that holds the data sets (or VLAD_DATA)",
                    "--data.categories A,B": "these categories alone",
                    "--data.images_per_category N": "so many images of each, or a share of them (0.25)",
                },
            ),
            (
                "run",
                {
                    "--trainer.max_epochs N": "the published number by default",
                    "--seed_everything N": "seed of everything drawn (0)",
                    "--config FILE": "options from a YAML file; the command line wins",
                    "--output DIR": "the run folder; a new one by default",
                },
            ),
            ("machine", _MACHINE),
        ],
        [
            "vlad fit --model sdp_plus --data.root data --data.train mvtec_ad",
            "vlad fit --model clip_ada --data.train my_parts/ --output runs/parts",
        ],
    ),
    "validate": (
        "vlad validate --data.val DATA [options]       metrics on validation data, without scores and heat maps",
        [
            ("method", _METHOD),
            (
                "data",
                {
                    "--data.val DATA": _DATA,
                    **_LABELLED,
                },
            ),
            (
                "results",
                {
                    "--output DIR": "the run folder; a new one by default",
                    "--metrics.mode exact": "keep every pixel's score; streaming by default",
                    "--config FILE": "options from a YAML file; the command line wins",
                },
            ),
            ("machine", _MACHINE),
        ],
        [
            "vlad validate --model sdp --data.root data --data.val mvtec_loco",
            "vlad validate --model sdp --data.val '{name: folder, root: my_parts, split: test}'",
        ],
    ),
}


def verb_help(verb: str) -> str:
    """Returns a verb's short help."""
    usage, groups, examples = HELP[verb]
    lines = [f"usage: {usage}", ""]
    for title, options in groups:
        lines += [f"{title}:", *(f"  {option:<28} {text}" for option, text in options.items())]
    lines += ["", "examples:", *(f"  {example}" for example in examples), ""]
    lines.append("--help-all prints every option; all of them can stand in a YAML file: --config FILE (docs/cli.md)")
    return "\n".join(lines)
