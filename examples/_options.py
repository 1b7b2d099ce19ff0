"""Command line of the paper's experiments, and the trainer that it asks for."""

from __future__ import annotations

import argparse
import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import LIBRARIES, NEURONS, NORMS, Normalization
from torch import Tensor, nn

from fptt_plugin import BPTT, FPTTTrainer, TruncatedBPTT
from fptt_plugin.functional import ClassDistribution

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}


def base_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every script, also of those that train nothing through time."""
    # No abbreviations: --window is not to be taken for --window-ms where only that exists.
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1, help="of torch on the CPU")
    add("--data-dir", type=Path, default=Path(os.environ.get("FPTT_DATA", "data")), help="default: $FPTT_DATA or data")
    add("--out", type=Path, help="folder for results and checkpoint; default: one of the run's own below runs")
    add("--smoke", action="store_true", help="a few seconds on synthetic data: does it run?")
    return parser


def add_epoch_options(parser: argparse.ArgumentParser) -> None:
    """Epochs, and the learning rate over them."""
    add = parser.add_argument
    add("--epochs", type=int, default=20)
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=3e-3)
    add("--schedule", choices=("constant", "cosine", "steps"), default="constant", help="of the learning rate")
    add("--milestones", type=int, nargs="*", default=[10, 30, 50, 75, 90], help="epochs after which lr falls")
    add("--gamma", type=float, default=0.1, help="factor at the milestones")


def make_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every experiment has; ``defaults`` are those of the task."""
    parser = base_parser(doc)
    add_epoch_options(parser)
    add = parser.add_argument
    add("--method", choices=("fptt", "tbptt", "bptt"), default="fptt", help="tbptt: alpha = 0, the control")
    add("--neuron", choices=NEURONS, default="ltc")
    add("--library", choices=LIBRARIES, default="snntorch")
    add("--optimizer", choices=tuple(OPTIMIZERS), default="adam")
    add("--eps", type=_eps, default="1e-8", help="Adam's eps: a number, or 'auto' for alpha * lr")
    add("--alpha", type=float, default=0.1, help="strength of the regularizer")
    add("--beta", type=float, default=0.5, help="rate of the running average")
    add("--average-weights", choices=("epoch", "never"), default="epoch", help="when W_bar replaces W")
    add("--max-grad-norm", type=float, default=1.0)
    add("--window", type=int, default=1, help="steps that a gradient reaches back; bptt: all")
    add("--update-every", type=int, help="steps between updates; default: the window")
    add("--loss-every", type=int, help="steps between losses; default: the window")
    auxiliary = parser.add_mutually_exclusive_group()
    auxiliary.add_argument("--no-auxiliary", action="store_true", help="no class-distribution term in the loss")
    auxiliary.add_argument(
        "--auxiliary", action="store_false", dest="no_auxiliary", help="with it, whatever the recipe"
    )
    auxiliary.add_argument("--auxiliary-mean", action="store_true", help="its mean over classes, as the authors' code")
    add("--accelerate", choices=("none", "compile", "cudagraph", "auto"), default="none")
    add("--device", default="cpu")
    add("--test-every", type=int, default=1, help="epochs between tests; the last epoch is always tested")
    add(
        "--recalibrate",
        type=int,
        default=0,
        metavar="BATCHES",
        help="recompute the running statistics of batch normalization before a test, over that many training batches",
    )
    add(
        "--test-only", action="store_true", help="with --resume: test the last checkpoint again, with --recalibrate say"
    )
    add("--resume", action="store_true", help="go on from the checkpoint in that folder, if there is one")
    add("--max-minutes", type=float, help="begin no epoch that would end later than that")
    parser.set_defaults(**defaults)
    return parser


def add_drive_options(parser: argparse.ArgumentParser) -> None:
    """Options of a recurrent network's drives and time constants."""
    add = parser.add_argument
    add("--norm", choices=NORMS, default="none", help="of the input drive and the recurrent drive; step: per time step")
    add("--norm-gamma", type=float, default=1.0, help="its initial scale; the authors' code: 0.1")
    switch = argparse.BooleanOptionalAction
    add("--norm-readout", action=switch, default=False, help="normalize the drive of the readout, too")
    add(
        "--spread",
        action=switch,
        default=False,
        help="spread time constants log-uniformly; without it all start at two steps",
    )
    add("--longest", type=float, help="longest of them, in steps; default: an eighth of a sequence, at least four")


def drives_of(options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """What :func:`models.recurrent_net` takes from :func:`add_drive_options`, for sequences of that many steps."""
    norm = Normalization(options.norm, steps, options.norm_gamma, options.norm_readout)
    return {"norm": norm, "longest": (options.longest or max(steps / 8, 4.0)) if options.spread else None}


def drive_parts(options: argparse.Namespace) -> list[str]:
    """What these options add to the name of a run."""
    parts = [] if options.norm == "none" else [f"{options.norm}norm{options.norm_gamma:g}"]
    parts += ["ro"] * options.norm_readout
    return parts + [f"spread{options.longest or ''}"] * options.spread


Recipes = dict[str, dict[str, Any]]


def add_recipes(parser: argparse.ArgumentParser, recipes: Recipes) -> None:
    """``--recipe``: names for sets of options, of which each may still be given by itself."""
    lines = [
        f"  {name}: " + " ".join(_flag(*option) for option in chosen.items() if option[1] is not None)
        for name, chosen in recipes.items()
    ]
    first = next(iter(recipes))
    parser.add_argument("--recipe", choices=tuple(recipes), default=first, help=f"see the end; default: {first}")
    parser.epilog = "recipes, each of which stands for these options:\n" + "\n".join(lines)
    parser.set_defaults(_recipes=recipes)


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    return f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _eps(text: str) -> str:
    """As it was given, which is how result files hold it."""
    if text != "auto":
        try:
            float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'auto'") from None
    return text


def parse(
    parser: argparse.ArgumentParser, synthetic: Callable[[Path], None] | None = None, **smoke: Any
) -> argparse.Namespace:
    """Reads the command line and seeds torch.

    Under ``--smoke``, ``smoke`` are the defaults, and ``synthetic(folder)`` fills a temporary folder that stands for
    the data directory.
    """
    recipes = parser.get_default("_recipes")
    parser.set_defaults(_recipes=None)
    first = parser.parse_known_args()[0]
    if recipes:
        parser.set_defaults(**recipes[first.recipe])
    if first.smoke:
        parser.set_defaults(**smoke)
    options = parser.parse_args()
    del options._recipes
    if options.smoke and synthetic is not None:
        options.data_dir = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, options.data_dir)
        synthetic(options.data_dir)
    # What decays without input (adaptation, moments of unused weights) ends below 1e-38, where a CPU is slow.
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def eps_of(options: argparse.Namespace) -> float:
    """Adam's eps."""
    return float(options.alpha * options.lr if options.eps == "auto" else options.eps)


def learning_rate(options: argparse.Namespace, epoch: int) -> float:
    """Learning rate of an epoch, counted from 1."""
    lr: float = options.lr
    if options.schedule == "cosine":
        return lr * (1 + math.cos(math.pi * (epoch - 1) / options.epochs)) / 2
    if options.schedule == "steps":
        return float(lr * options.gamma ** sum(epoch > milestone for milestone in options.milestones))
    return lr


def epoch_seed(options: argparse.Namespace, epoch: int) -> int:
    """Seed of all that is random in an epoch."""
    seed: int = options.seed
    return seed * 1_000_003 + epoch


def run_folder(task: str, variant: str, options: argparse.Namespace) -> Path:
    """Folder of the run, named after what sets it apart."""
    if options.out is not None:
        return Path(options.out)
    parts = [variant, options.neuron, options.library, options.method]
    if options.method == "fptt":
        parts.append(f"a{options.alpha:g}")
    if float(eps_of(options)) != 1e-8:
        parts.append(f"eps{eps_of(options):g}")
    if options.method != "bptt":
        parts.append(f"w{options.window}")
    parts += [f"{name}{value}" for name, value in (("u", options.update_every), ("l", options.loss_every)) if value]
    parts += ["no-auxiliary"] * options.no_auxiliary + ["auxiliary-mean"] * options.auxiliary_mean
    parts += [f"lr{options.lr:g}", f"b{options.batch_size}", f"s{options.seed}", "smoke" if options.smoke else ""]
    return Path("runs") / task / "-".join(filter(None, parts))


def open_trainer(
    net: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], options: argparse.Namespace, extra: dict[str, Any]
) -> FPTTTrainer:
    """The trainer of the chosen method: only how gradients go through time differs, and the regularizer."""
    chosen: dict[str, Any] = {"lr": options.lr, "eps": eps_of(options)}
    if options.optimizer == "adam":
        chosen["fused"] = True
    optimizer = OPTIMIZERS[options.optimizer](net.parameters(), **chosen)
    settings = {"loss_every": options.loss_every, "max_grad_norm": options.max_grad_norm, **extra}
    if options.no_auxiliary:
        settings["auxiliary"] = False
    if options.auxiliary_mean:
        settings["auxiliary"] = ClassDistribution(mean_over_classes=True)
    if options.accelerate != "none":
        settings["accelerate"] = options.accelerate
    if options.method == "bptt":
        return BPTT(net, optimizer, loss_fn, **settings)
    settings |= {"window": options.window, "update_every": options.update_every}
    if options.method == "tbptt":
        return TruncatedBPTT(net, optimizer, loss_fn, **settings)
    # W_bar replaces W after the evaluation of both, which the loop does.
    return FPTTTrainer(
        net, optimizer, loss_fn, alpha=options.alpha, beta=options.beta, average_weights="never", **settings
    )
