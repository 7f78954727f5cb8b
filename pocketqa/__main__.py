"""The `pocketqa` command: a literal table of verbs, each one file with `main(argv)`.

    pocketqa --help
    pocketqa answer --question "Who built it?" --context-file passage.txt

`--help` reads the table only and imports no application, so that it works, at once, in every install.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from pocketqa.chatter import hush
from pocketqa.errors import MissingExtra, PocketQAError

# verb -> (module:function, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "serve": ("service.serve:main", "serve a teacher and a student over HTTP, with a page that compares them"),
    "answer": ("pocketqa.answer:main", "answer a question about a text file, or a file of questions"),
    "evaluate": ("distillation.evaluate:main", "exact match and F1 of a model, or of a predictions file, on SQuAD-format data"),
    "pretrain": ("distillation.pretrain:main", "train a checkpoint to fill in masked words of a text corpus: gives a teacher its language head"),
    "distill": ("distillation.distill:main", "train a student on a text corpus to match a teacher: DistilBERT's, TinyBERT's and other recipes"),
    "cloze": ("distillation.cloze:main", "make questions out of raw text, to train on before the questions that people wrote"),
    "finetune": ("distillation.finetune:main", "train a checkpoint to answer questions, alone or from a teacher"),
    "ablate": ("distillation.ablate:main", "repeat a distillation with parts left out, in paired seeds, beside the paper's table"),
    "grow": ("distillation.grow:main", "make a 12-layer teacher from a 6-layer base"),
    "student": ("distillation.student:main", "make a student from some layers of a teacher"),
    "package": ("mobile_export.package:main", "make a model folder (float16 weights, ONNX graph, manifest) from a checkpoint"),
    "export": ("mobile_export.export:main", "export a model for phones: a bundle with a Core ML package or an ExecuTorch program"),
    "compress": ("mobile_export.compress:main", "make a smaller bundle from a bundle, within a loss of F1"),
    "verify": ("mobile_export.verify:main", "run an exported bundle on any machine and compare it with its model"),
    "benchmark": (
        "pocketqa.benchmark:main",
        "size and latency of models and bundles as a phone would ask, the speed of training or of the service (--workload training, service, load)",
    ),
    "report": ("pocketqa.report:main", "write RESULTS.md and the README's table from run files"),
}

# The extra that installs each optional package, to name when an import fails.
EXTRA_OF = {
    "openvino": "openvino",
    "accelerate": "train",
    "datasets": "train",
    "safetensors": "train",
    "torch": "train",
    "transformers": "train",
    "coremltools": "export",
    "executorch": "export",
    "nncf": "export",
    "onnx": "export",
    "sklearn": "train",
    "scipy": "train",
    "tensorboard": "train",
    "matplotlib": "report",
    "locust": "loadtest",
    "ray": "ray",
}

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NOT_WRITTEN = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)
CLOSED_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: its own, 2 for a deliberate error, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else None
    if first in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if first in ("-V", "--version"):
        from pocketqa import __version__

        print(f"pocketqa {__version__}")
        return 0
    if first is None:
        print(help_text(), file=sys.stderr)
        return USAGE_ERROR
    if first not in VERBS:
        print(unknown_verb(first), file=sys.stderr)
        return USAGE_ERROR
    return _run(first, arguments[1:])


def help_text() -> str:
    """The verbs with one line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(["usage: pocketqa [--help] [--version] VERB ...", "", *lines, "", "`pocketqa VERB --help` lists the options of one verb."])


def unknown_verb(word: str) -> str:
    """What to say about a word that is no verb, with the nearest one."""
    near = difflib.get_close_matches(word, VERBS, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"pocketqa: expected one of {', '.join(VERBS)}, found {word!r}.{guess} `pocketqa --help` says what each does."


def _run(verb: str, arguments: list[str]) -> int:
    hush()
    try:
        status = _load(verb)(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a closed pipe can still be caught
        return status
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in EXTRA_OF:
            return _fail(verb, MissingExtra(package, EXTRA_OF[package], f"`pocketqa {verb}`"))
        if error.name == VERBS[verb][0].partition(".")[0]:  # the container image, for one, holds only what serves
            return _fail(
                verb, PocketQAError(f"this install holds no package {error.name!r}. Use it where all of PocketQA is installed: pip install pocketqa")
            )
        raise
    except PocketQAError as error:
        return _fail(verb, error)
    except PermissionError as error:
        if error.filename is None:  # nothing to name: the trace says more
            raise
        who = "this user may not read or write it. Change its permissions, name another place, or run as its owner."
        return _fail(verb, PocketQAError(f"{error.filename}: {error.strerror}; {who}"))
    except KeyboardInterrupt:
        print(f"\npocketqa {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`pocketqa report | head`): end quietly.
        _discard_output()
        return CLOSED_PIPE
    except OSError as error:
        if error.filename is not None or error.errno not in NOT_WRITTEN or not _output_fails():
            raise
        _discard_output()
        return _fail(verb, PocketQAError(f"standard output cannot be written: {error.strerror}."))


def _load(verb: str) -> Callable[[list[str]], int]:
    module, _, function = VERBS[verb][0].partition(":")
    loaded: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return loaded


def _output_fails() -> bool:
    """Whether what could not be written was standard output (`> /dev/full`): then no more can be."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _discard_output() -> None:
    """Whatever is still held back for standard output goes nowhere when Python flushes it at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(verb: str, error: PocketQAError) -> int:
    print(f"pocketqa {verb}: {error}", file=sys.stderr)
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
