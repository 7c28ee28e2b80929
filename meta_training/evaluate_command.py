"""``innerloop evaluate``: what a person types. The work is in ``evaluation/judging.py``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from meta_training.arguments import add_machine_arguments, need, positive, refused

DESCRIPTION = "Score an artifact on held-out tasks, beside the plain alternatives."
NEEDED = {
    "encoder": "encoder",
    "frozen": "pretrained",
    "in-context": "pretrained",
    "lora": "pretrained",
    "multitask-lora": "multitask",
    "prototypical-network": "prototypes",
}
METHODS = {
    "ours": "the adapter after its inner steps",
    "ours-recall": "the same with the memory of what was taught, as a server answers",
    "ours-prompt": "the same with the examples in the prompt as well",
    "tfidf": "nearest centroid of TF-IDF (labels only, as all up to `frozen`)",
    "encoder": "nearest class mean of the encoder's vectors",
    "prototypical": "nearest class mean of the artifact's hidden states",
    "matching": "attention over the examples' hidden states",
    "siamese": "nearest example by hidden states",
    "frozen": "nearest class mean of the pre-trained base's hidden states",
    "in-context": "the pre-trained base with the examples in the prompt; of an artifact of the "
    "algorithm in-context its own, where no other is given",
    "lora": "LoRA and AdamW on the pre-trained base, one step size tuned on validation tasks for "
    "all cells, after 5 and after 50 steps",
    "multitask-lora": "the same on the multi-task control's base",
    "prototypical-network": "nearest class mean of a Prototypical Network's hidden states",
}
CONTROLS = ("multitask", "prototypes")
ONE_ALONE = ("pretrained", *CONTROLS, "tasks", "page", "plot", "results")
PICTURES = (".svg", ".png", ".pdf")
LEFT_OUT = ("matching", "siamese")
OF_ITSELF = "in-context"  # needs no base where the artifact was trained for it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "artifacts",
        type=Path,
        nargs="+",
        metavar="ARTIFACT",
        help="folder, as meta-train exports it; several are splits of one source (data.split of "
        "their recipes), whose mean is printed at the end",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument(
        "--tasks",
        type=Path,
        metavar="YAML",
        help="judge on these tasks instead of what the artifact's recipe held out: a list of parts "
        "as of a recipe's data.tasks (docs/meta-training.md)",
    )
    parser.add_argument("--pretrained", type=Path, help="the base before meta-training (controls)")
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="judge the artifact as served with this sentence encoder, for which `innerloop "
        "calibrate` chose its gate's numbers; report.json is written beside the results",
    )
    parser.add_argument(
        "--gate-margin",
        type=_margin,
        default=0.0,
        metavar="COSINE",
        help="judge the artifact, not its controls, as served with this setting: how much liker to "
        "what was taught than its gate asks for a question has to be; report.json is written "
        "beside the results",
    )
    parser.add_argument("--multitask", type=Path, help="the multi-task control's artifact")
    parser.add_argument(
        "--prototypes",
        type=Path,
        help="a Prototypical Network's artifact (outer.algorithm prototypical), for the method "
        "prototypical-network",
    )
    parser.add_argument("--episodes", type=positive, default=200, help="tasks a cell")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        metavar="METHOD",
        help="; ".join(f"{name}: {what}" for name, what in METHODS.items())
        + f" (default: all but {', '.join(LEFT_OUT)} and what needs a folder that is not given)",
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only cells with these words; or names in full, which need not be usual ones, as "
        "'label 20-way 10-shot' and 'label full-way 5-shot' (all held-out classes of a source)",
    )
    parser.add_argument(
        "--queries", type=positive, help="queries a class (default: some 20 a task for labels)"
    )
    parser.add_argument(
        "--wrong",
        nargs="+",
        type=_percent,
        default=[0],
        metavar="PERCENT",
        help="shares of examples that are taught another class's or pair's answer (default 0)",
    )
    parser.add_argument(
        "--explain",
        type=positive,
        metavar="N",
        help="tell of N tasks of the first cell which examples moved the adapter, each left out in "
        "turn, and which modules it changes (into report.json, with their text, and the page)",
    )
    add_machine_arguments(parser)
    parser.add_argument("--seed", type=int, default=1000, help="of the tasks drawn")
    parser.add_argument(
        "--page", type=Path, help="page with all plots and tables (default ARTIFACT/../report.html)"
    )
    parser.add_argument(
        "--plot",
        type=_picture,
        metavar="FILE",
        help=f"draw quality against examples here ({', '.join(PICTURES)})",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="lines per task (default ARTIFACT/../results.jsonl); report.json is written beside "
        "them then, and the artifact's stays as it is",
    )


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"expected a file {' or '.join(PICTURES)}, got {text!r}")
    return path


def _margin(text: str) -> float:
    try:
        margin = float(text)
    except ValueError:
        margin = math.nan
    if not -1 <= margin <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from -1 to 1, got {text!r}")
    return margin


def _percent(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 100, got {text!r}")
    return int(text)


def lacking(name: str) -> str:
    """What is said of a method whose folder is not given."""
    return f"method {name} needs --{NEEDED[name]}: give its folder, or name other --methods"


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, resume, or only sum up; writes ``report.json`` and a page.

    Raises:
        ModuleNotFoundError: a package of the extra is missing.
    """
    need("sklearn", "sacrebleu", "matplotlib")
    if len(arguments.artifacts) > 1:
        for option in ONE_ALONE:
            if getattr(arguments, option) is not None:
                wrong = (
                    f"--{option} is of one artifact: evaluate each with its own first, and then "
                    "all of them without it; the mean has all that was judged"
                )
                return refused("evaluate", ValueError(wrong))
    without = [name for name, option in NEEDED.items() if getattr(arguments, option) is None]
    if arguments.methods is None:
        arguments.methods = [name for name in METHODS if name not in (*LEFT_OUT, *without)]
    for name in without:
        if name in arguments.methods and name != OF_ITSELF:
            return refused("evaluate", ValueError(lacking(name)))
    from meta_training.evaluation.judging import judge  # imports PyTorch

    return judge(arguments)
