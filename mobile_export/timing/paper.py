"""The phone experiment of the DistilBERT paper, re-run and audited: `pocketqa benchmark --preset paper`.

    pocketqa benchmark --preset paper --run-file runs
    pocketqa benchmark --preset paper --teacher models/bert-base --student models/distilbert --packages bundles/distilbert-ios15
    pocketqa benchmark --preset paper --phone phone.json

The paper (Sanh et al., arXiv 1910.01108) says of an iPhone 7 Plus: DistilBERT is "71 % faster than BERT" without tokenisation, and "the whole model
weighs 207 MB".  The only published artefacts that match are of one commit of huggingface/swift-coreml-transformers, f9ce549 (2019-09-16): a file of
207,185,526 bytes that is no complete model, and a pair of times taken of unlike inputs.  That is strong circumstance, not proof; paper_audit.CAVEATS
says what speaks against it.  Here the same is computed and timed on this machine, once with equal inputs and once with the unlike ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from mobile_export.benchmark import progress, run_of
from mobile_export.bundle import open_bundle
from mobile_export.bundle import sizes as bundle_sizes
from mobile_export.checkpoint.geometry import BERT_BASE, DISTILBERT, Geometry, make_folder
from mobile_export.timing.benchmark_options import HUB, check_run_file, rules_of, thread_counts
from mobile_export.timing.contestants import (
    CONFIGURATION,
    WEIGHTS,
    Contestant,
    bundle_contestant,
    folder_contestant,
    model_contestant,
    parse_engine,
)
from mobile_export.timing.latency import race_results, read_latency
from mobile_export.timing.latency_text import race_lines, threads_text
from mobile_export.timing.machine_load import load_average
from mobile_export.timing.paper_audit import CAVEATS, HEAD, TOKENS, ZEROS, Row, audit
from mobile_export.timing.single_stream import race
from mobile_export.timing.sizes import sizes_of
from mobile_export.timing.workloads import fixed_workload
from mobile_export.tools import check_installed
from pocketqa import runs
from pocketqa.errors import OptionsError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.reporting.tables import table
from pocketqa.runtimes import ENGINES
from pocketqa.types import JSON

EXPERIMENT = "The DistilBERT paper's phone experiment"
TITLE = f"{EXPERIMENT}: a server CPU in the phone's manner"


def run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """The preset.  Raises PocketQAError."""
    average, counts, rules = load_average(), thread_counts(arguments), rules_of(arguments)
    check_run_file(arguments.run_file, len(counts))
    phone = read_latency(arguments.phone) if arguments.phone else None
    packages = {Path(path).name: bundle_sizes(open_bundle(path)) for path in arguments.packages}
    races: list[JSON] = []
    with contestants_of(arguments) as (contestants, bare):
        sizes = {contestant.label: sizes_of(contestant) for contestant in contestants}
        workload = fixed_workload(TOKENS, Tokenizer(bare.tokenizer), arguments.data, seed=arguments.seed)
        for threads in counts:
            done = race(
                [replace(contestant, threads=threads) for contestant in contestants],
                workload,
                rules,
                seed=arguments.seed,
                load_average=average,
                say=progress,
            )
            results = race_results(done, sizes)
            races.append(results | {"title": TITLE, "audit": [asdict(row) for row in audit([results], packages, phone)], "caveats": CAVEATS})
            if arguments.run_file:
                named = run_of(done, races[-1], argv, f"paper {threads_text(threads)} {rules.mode}")
                progress(f"run file: {runs.write(named, arguments.run_file)}")
            if done.interrupted:
                break
    rows = audit(races, packages, phone)
    title = title_of(phone)
    if arguments.json:
        print(json.dumps({"title": title, "rows": [asdict(row) for row in rows], "caveats": CAVEATS, "races": races}))
    else:
        print("\n".join(document(title, rows, races)))
    return int(any(results["interrupted"] for results in races))


def title_of(phone: runs.RunFile | None) -> str:
    """What the experiment is: without a phone's run file, one on a server."""
    return TITLE if phone is None else f"{EXPERIMENT}, on {phone.results['device']['name']} and on a server CPU"


def document(title: str, rows: Sequence[Row], races: Sequence[JSON]) -> list[str]:
    """The audit as Markdown."""
    lines = [f"# {title}", "", *table(HEAD, [row.cells() for row in rows]), "", "What speaks against this reading:", ""]
    lines += [f"- {caveat}" for caveat in CAVEATS]
    for results in races:
        lines += race_lines(results)
    return lines


@contextlib.contextmanager
def contestants_of(arguments: argparse.Namespace) -> Iterator[tuple[list[Contestant], Contestant]]:
    """BERT-base and DistilBERT in every engine, and DistilBERT on zeros in the first; and the one whose tokenizer cuts the windows.

    Folders and bundles made on the way lie in a temporary folder for as long as the context lasts.
    """
    engines = (arguments.engines or ",".join(_default_engines())).split(",")
    named = [parse_engine(engine)[0] for engine in engines]
    if "coreml" in named:
        raise OptionsError("The preset paper runs model folders; Core ML times come from a phone's run file (--phone).")
    if "executorch" in named:
        check_installed("writing ExecuTorch programs", "executorch")
    with tempfile.TemporaryDirectory(prefix="pocketqa-paper-") as temporary:
        made: list[Contestant] = []
        for role, geometry in (("teacher", BERT_BASE), ("student", DISTILBERT)):
            folder, origin = find_model(getattr(arguments, role), HUB[role], geometry, Path(temporary) / role)
            made += [_contestant(folder, engine, geometry.name, role, origin, Path(temporary)) for engine in engines]
        plain = [contestant for contestant in made if contestant.form == "model"]
        zeros = [replace(c, name=f"{DISTILBERT.name} on {ZEROS} zeros", zeros=ZEROS) for c in plain if c.role == "student"][:1]
        yield [*made, *zeros], made[0]


def _default_engines() -> list[str]:
    return ["onnxruntime", *(["executorch"] if find_spec("executorch") else [])]


def find_model(given: str | None, hub: str, geometry: Geometry, temporary: Path) -> tuple[Path, str]:
    """A model folder, and where its parameters come from: a folder that is named, a copy of a Hub model on this disk, or the configuration."""
    found = Path(given) if given else cached(hub)
    if found is None:
        progress(f"making {geometry.name} from its configuration (no weights named with --teacher and --student, none of {hub} on this disk)")
        return make_folder(geometry, temporary), CONFIGURATION
    if ModelFolder(found).graph.is_file():
        return found, WEIGHTS
    from mobile_export.package import package

    progress(f"packaging {found.name if given else hub}")
    package(str(found), temporary, name=geometry.name, say=progress)
    return temporary, WEIGHTS


def cached(name: str) -> Path | None:
    """The folder of a Hub model that was fetched before; nothing is fetched."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    files = [try_to_load_from_cache(name, file) for file in ("model.safetensors", "config.json", "vocab.txt")]
    return Path(files[0]).parent if all(isinstance(file, str) for file in files) and isinstance(files[0], str) else None


def _contestant(folder: Path, engine: str, name: str, role: str, origin: str, temporary: Path) -> Contestant:
    named, precision = parse_engine(engine)
    if named in ENGINES and origin == WEIGHTS:
        return model_contestant(folder, engine, 1, name=name, role=role)
    if named in ENGINES:
        return folder_contestant(folder, engine, 1, name=name, role=role)
    from mobile_export.checkpoint.checkpoints import open_checkpoint
    from mobile_export.formats.exporting import export_bundle
    from mobile_export.targets import find_target

    progress(f"writing {name} for ExecuTorch in {precision}")
    out = temporary / f"{role}-executorch-{precision}"
    export_bundle(open_checkpoint(str(folder)), out, find_target("executorch"), (TOKENS,), scheme=precision)
    return replace(bundle_contestant(out, 1, name=name, role=role), origin=origin)
