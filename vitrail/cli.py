"""The command line: a verb, then what the verb's function takes. Verbs are imported when used, torch with them."""

from __future__ import annotations

import logging
import sys

from vitrail.errors import Interrupted, UserError, did_you_mean

VERBS = {
    "train": "[DATA]            train a model on images; no DATA: on 1,797 real digits",
    "eval": "RUN [DATA]        accuracy, per-class scores and confusion on held-out images",
    "predict": "RUN IMAGE...      classes and probabilities of image files, folders, globs",
    "explain": "RUN IMAGE...      pictures of what the model looks at",
    "export": "RUN OUT           .safetensors, .onnx or .pt2, reloaded and compared",
    "models": "[PATTERN]         every architecture, with its printed figures",
    "show": "NAME              one architecture: paper, settings, where its weights live",
    "recipes": "                  the published ways to train",
    "doctor": "DATA              damaged, odd, duplicate and misnamed images, class counts",
    "show-batch": "DATA              a picture of an augmented batch",
    "copy": "FAMILY FILE       an architecture's file, to change it and train it",
}


def main() -> None:
    """Run `vitrail` on sys.argv. Exit code 0; 1 for what the user can mend; 2 for a wrong command; 128 + a signal."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    verb, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if verb in ("--help", "-h", "help"):
        print(help_text())
    elif verb == "--version":
        from vitrail import __version__

        print(f"vitrail {__version__}")
    elif verb not in VERBS:
        sys.exit(_say(f"no command '{verb}'{did_you_mean(verb, VERBS)}; `vitrail --help` lists them", 2))
    else:
        sys.exit(_run(verb, arguments))


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


def _run(verb: str, arguments: list[str]) -> int:
    from vitrail.commands import run_command

    try:
        run_command(verb, arguments)
        return 0
    except UserError as error:
        return _say(str(error), 1)
    except Interrupted as error:
        return _say(str(error), 128 + error.signum)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `vitrail models | head`
        sys.stderr.close()
        return 1


def _say(sentence: str, code: int) -> int:
    print(f"vitrail: {sentence}", file=sys.stderr)
    return code
