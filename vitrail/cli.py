"""The command line: a verb, then what the verb's function takes. Verbs are imported when used, torch with them."""

from __future__ import annotations

import atexit
import io
import logging
import os
import re
import sys

from vitrail.errors import Interrupted, Lost, UserError, did_you_mean

VERBS = {
    "train": "[DATA]            train a model on images; no DATA: on 1,797 real digits",
    "lr-find": "[DATA]            a learning rate to train with, and a picture of how it was found",
    "eval": "RUN [DATA]        accuracy, per-class scores and confusion on held-out images",
    "ensemble": "RUN RUN ...       several models vote on held-out images",
    "probe": "RUN [DATA]        how good features are: linear probe, few-shot, nearest neighbours",
    "predict": "RUN IMAGE...      classes and probabilities of image files, folders, globs",
    "explain": "RUN IMAGE...      pictures of what the model looks at",
    "inspect": "RUN [RUN2] [DATA] a page of what a model has learned: heads, layers, positions, landscape",
    "compare": "DATA              train several models alike on one's own images; one page with intervals",
    "robustness": "RUN [DATA]        corrupted, hidden, shuffled, attacked and resized images",
    "bench": "RUN ...           images a second, latency, memory, share of what this machine can do",
    "export": "RUN OUT           .safetensors, .onnx or .pt2, reloaded and compared",
    "models": "[PATTERN]         every architecture, with its printed figures",
    "show": "NAME              one architecture: paper, settings, where its weights live",
    "recipes": "                  the published ways to train",
    "doctor": "DATA              damaged, odd, duplicate and misnamed images, class counts",
    "show-batch": "DATA              a picture of an augmented batch",
    "shard": "DATA OUT          images as WebDataset tar shards, few large files",
    "study": "[NAME]            re-run a published claim; a verdict with intervals (--list: all claims)",
    "copy": "FAMILY FILE       an architecture's file, to change it and train it",
}


def command() -> None:
    """The process `vitrail`: `main`, and then a quick end, without the second that Python takes to free torch."""
    code = [1]  # of an error that nobody caught
    atexit.register(lambda: os._exit(code[0]))  # registered first, so called last, after what libraries have to do
    try:
        main()
    except SystemExit as end:
        code[0] = int(end.code or 0)
        raise


def main() -> None:
    """Run `vitrail` on sys.argv. Exit code 0; 1 for what the user can mend; 2 for a wrong command; 128 + a signal."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are no text; JSON reads this back
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _answer(*sys.argv[1:] or ["--help"])
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is noticed; at its end the process only stops
    except UserError as error:
        code = _say(str(error), 1)
    except Interrupted as error:
        code = _say(str(error), 128 + error.signum) if str(error) else 128 + error.signum
    except Lost:
        code = 1
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except BrokenPipeError:  # as in `vitrail recipes | head -1`: what is still unwritten goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a full disk, a folder that may not be entered: the system's own words
        code = _say(f"{error.filename or 'cannot write'}: {error.strerror or error}", 1)
    sys.exit(code)


def help_text() -> str:
    """What `vitrail --help` prints."""
    lines = [f"  {verb:<11}{about}" for verb, about in VERBS.items()]
    return "\n".join(
        [
            "vitrail: vision transformers for visual recognition",
            "",
            "usage: vitrail COMMAND ...      (vitrail COMMAND --help for its options)",
            "",
            *lines,
            "",
            "RUN is a run folder, or a model's name for random or --pretrained weights. DATA is digits, a folder,",
            "cifar10 and kin, hf:NAME, a .npz, a .csv, or tar shards. --json prints one JSON object and nothing else.",
        ]
    )


def _answer(verb: str, *arguments: str) -> int:
    """Do what the command line says; the exit code."""
    if verb in ("--help", "-h", "help"):
        print(help_text())
    elif verb == "--version":
        from vitrail import __version__

        print(f"vitrail {__version__}")
    elif verb not in VERBS:
        near = did_you_mean(verb, [*VERBS, "--help", "--version"])
        return _say(f"no command '{verb}'{near}; `vitrail --help` lists them", 2)
    else:
        from vitrail.commands import run_command

        try:
            run_command(verb, list(arguments))
        except SystemExit as end:  # tyro's, after --help and for wrong flags
            return int(end.code or 0)
    return 0


def _say(sentence: str, code: int) -> int:
    line = re.sub(r"\s*\n\s*", " ", sentence)  # other libraries' errors, quoted in ours, may have several
    print(f"vitrail: {line}", file=sys.stderr)
    return code
