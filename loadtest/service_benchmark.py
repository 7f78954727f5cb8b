"""How fast the service is: against the plain way done fairly (A) and the same reader at batch 1 (B), same questions, same model, same cores.

    pocketqa benchmark --workload service
    pocketqa benchmark --workload service --model DIR --data dev-v1.1.json --run-file runs
    pocketqa benchmark --workload service --preset paper --run-file runs
    pocketqa benchmark --workload service --preset paper --form openvino-int8 --run-file runs

The client has one core, the servers share the others; all are up at once and one is asked at a time, in an order drawn anew for each round.  Every
contestant gets the same bytes.  A is the question-answering pipeline of transformers in PyTorch, in fp32 and in bf16, of which the better counts; B
is the service's own reader in OpenVINO bf16, one request at a time; "no batching" is the service itself, batches turned off.  Beside the times stands
how many answers among many users have the span that the question has alone.  --preset paper makes a student of the paper's size from its
configuration, with --form in int8, which the service then picks; its weights are random, so the form is not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from loadtest import service_costs
from loadtest.processes import Cores, Server, ServerFailed, machine_cpu, pinned, python
from loadtest.questions import SAMPLES, Question, load_questions
from loadtest.race import Row, points_of, rates_of, ratios_of, run_race
from loadtest.record import data_file, served_models
from pocketqa import runs
from pocketqa.errors import MissingExtra, OptionsError

OURS, PLAIN = "PocketQA", "A fp32"
MODELS = Path("models")
UNBATCHED = "no batching"
BASELINES = {
    PLAIN: ("loadtest.baseline_plain", "fp32", "the pipeline of transformers in PyTorch fp32 behind FastAPI"),
    "A bf16": ("loadtest.baseline_plain", "bf16", "the pipeline of transformers in PyTorch bf16 behind FastAPI"),
    "B": ("loadtest.baseline_openvino", "bf16", "this project's reader in OpenVINO bf16 behind FastAPI, at batch 1"),
    UNBATCHED: ("pocketqa", "", "the service with --batching off"),
}
PAPER_SIZE = service_costs.Geometry(layers=6, width=768, inner=3072)  # of DistilBERT
# The others let everybody wait for as long as it takes; a service that sent some of the users away would have less to do than they.
PATIENT = ("--max-queue-seconds", "300", "--deadline-seconds", "600")
MEBIBYTE = 1 << 20
# What the service is to reach with a student of the paper's size.
BARS: tuple[Row, ...] = (
    {"against": "A", "users": 1, "of": "p50", "least": 4.5},
    {"against": "A", "users": 32, "of": "rate", "least": 8.0},
    {"against": "B", "users": 1, "of": "p50", "least": 1.0},
    {"against": "B", "users": 32, "of": "rate", "least": 1.5},
)
MAX_OTHERS = 0.1  # share of the machine's cores that other processes may use meanwhile


def main(argv: list[str]) -> int:
    """The verb `pocketqa benchmark --workload service`.  Raises PocketQAError."""
    given = _parse(argv)
    runs.check_target(given.run_file)
    for package in ("torch", "transformers"):  # of the baselines, and of the rate of matrix products
        if find_spec(package) is None:
            raise MissingExtra(package, "train", "`pocketqa benchmark --workload service`")
    cores = Cores.split()
    questions = load_questions(given.data, given.limit, given.seed)
    with _paper_student(given) if given.preset else contextlib.nullcontext(given.model) as model:
        results, subjects = measure(model, questions, given, cores)
    print("\n".join(lines(results)))
    if given.run_file:
        say(f"run file: {runs.write(_run(given, argv, subjects, questions, results, cores), given.run_file)}")
    return 0


def measure(model: Path, questions: Sequence[Question], given: argparse.Namespace, cores: Cores) -> tuple[Row, tuple[runs.Subject, ...]]:
    """The results, and the models of the service.  Raises PocketQAError."""
    geometry = service_costs.Geometry.of(model)
    before = matrix_rate(cores)
    with running(commands(model, given), cores) as servers, pinned(cores.client):
        ours = servers[0]
        subjects = subjects_of(ours, model, given.preset is None)
        operations = geometry.operations(*service_costs.tokens_of(ours, questions))
        began, own, clock = machine_cpu(), own_cpu(servers), time.monotonic()
        tallies = run_race(servers, questions, given.users, given.rounds, given.seed, say)
        load = load_of(began, own, servers, time.monotonic() - clock)
        roles = () if given.no_costs else tuple(subject.role for subject in subjects)
        costs = service_costs.measure(ours, questions, roles, given.rounds, given.seed, say)
        memory = {server.name: round(server.usage().memory / MEBIBYTE) for server in servers}
    after = matrix_rate(cores)
    rate = {name: max(before[name], after[name]) for name in before}
    names = [server.name for server in servers]
    points = points_of(tallies, questions, PLAIN)
    reached = {name: round(best * operations / 1e12, 4) for name, best in rates_of(points).items()}
    results = runs.service_results(
        f"closed loop, {len(questions)} questions of {Path(given.data).name} in Hugging Face's protocol, {given.rounds} rounds in random order",
        {name: _words(name, subjects) for name in names},
        points,
        ratios_of(tallies, OURS),
        costs=costs,
        matrix_rate={"measured": rate, "reached": reached, "operations": round(operations)},
        bars=BARS if geometry == PAPER_SIZE else (),
        load=load,
        extra={
            "origin": "configuration" if given.preset else "weights",
            "cores": {"servers": len(cores.servers), "client": len(cores.client)},
            "memory_mib": memory,
            "rounds": given.rounds,
            "seed": given.seed,
        },
    )
    return results, subjects


def commands(model: Path, given: argparse.Namespace) -> dict[str, list[str]]:
    """What starts each contestant, ours first.  Raises OptionsError for a baseline that is unknown."""
    if unknown := sorted(set(given.baselines) - set(BASELINES)):
        raise OptionsError(f"Expected --baselines out of {', '.join(BASELINES)}; found {', '.join(unknown)}.")
    teacher = given.teacher or (MODELS / "teacher" if (MODELS / "teacher").is_dir() else model)
    ours = python("pocketqa", "serve", "--host", "127.0.0.1", "--port", "0", "--student", str(model), "--teacher", str(teacher))
    made = {OURS: [*ours, *PATIENT, *given.serve_options]}
    for name in given.baselines:
        module, precision, _ = BASELINES[name]
        if name == UNBATCHED:
            made[name] = [*made[OURS], "--batching", "off"]
            continue
        if module.endswith("openvino") and find_spec("openvino") is None:
            say(f"{name} is left out: OpenVINO is not installed (extra `openvino`)")
            continue
        made[name] = python(module, "--model", str(model), "--precision", precision)
    return made


@contextlib.contextmanager
def running(commands: dict[str, list[str]], cores: Cores) -> Iterator[list[Server]]:
    """The servers, ready; started one after another, since opening models takes every core."""
    servers: list[Server] = []
    try:
        for name, command in commands.items():
            say(f"starting {name}")
            servers.append(Server(name, command, cores.servers))
            servers[-1].wait()
        yield servers
    finally:
        for server in servers:
            server.stop()


def matrix_rate(cores: Cores) -> dict[str, float]:
    """TFLOP/s of large matrix products on the servers' cores, by precision."""
    with pinned(cores.servers):
        done = subprocess.run(python("loadtest.baseline_matrices"), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFailed(f"Expected the rate of matrix products, found: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def lines(results: Row) -> list[str]:
    """What was found, for the terminal."""
    said = [results["workload"]]
    for row in results["points"]:
        times = f"p50 {row['p50']:9.2f} ms  p99 {row['p99']:9.2f} ms  {row['rate']['value']:8.2f} a second"
        scores = f"EM {row['exact_match']:6.2f}  F1 {row['f1']:6.2f}  client {row['client_share']:.0%}  failures {row['failures']}"
        said.append(f"{row['users']:>3} users  {row['contestant']:<9} {times}  {scores}")
    for row in results["ratios"]:
        what = "times as many answers a second as" if row["of"] == "rate" else f"times faster at {row['of']} than"
        said.append(f"{row['users']:>3} users  {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] {what} {row['against']}")
    for bar in results["bars"]:
        if (found := runs.judge(results, bar)) is not None:
            users = f"{bar['users']} user{'s' if bar['users'] > 1 else ''}"
            said.append(f"wanted against {bar['against']} at {users}: {bar['of']} x {bar['least']:g}: {runs.verdict(found, bar['least'])}")
    return said + [f"busy machine: {reason}" for reason in results["load"].get("reasons", ())]


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _paper_student(given: argparse.Namespace) -> Iterator[Path]:
    """A packaged student of the paper's size, from its configuration, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="pocketqa-service-") as temporary:
        checkpoint, folder = Path(temporary, "checkpoint"), Path(temporary, "distilbert")
        say("making a student of the paper's size from its configuration")
        commands = [
            python("loadtest.baseline_checkpoint", str(checkpoint), "--vocabulary", str(given.model)),
            python("pocketqa", "package", str(checkpoint), "--out", str(folder), "--name", "DistilBERT"),
        ]
        if given.form:
            commands.append(python("pocketqa", "package", str(folder), "--form", given.form, "--data", given.data, "--max-f1-loss", "100"))
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ServerFailed(f"Expected `{command[2]}` to make a student, found: {(done.stderr or done.stdout).strip()[-300:]}")
        yield folder


def subjects_of(ours: Server, model: Path, both: bool) -> tuple[runs.Subject, ...]:
    """The student as the service names it, its weights checked against the folder that all contestants open, and the teacher where it belongs to it.

    Raises ServerFailed.
    """
    student, *others = sorted(served_models(ours.url), key=lambda subject: subject.role != "student")
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    if digest != student.sha256:
        raise ServerFailed(f"Expected the service to serve the weights {digest[:12]}, found {student.sha256[:12]}.")
    return (student, *others) if both else (student,)


def _words(name: str, subjects: Sequence[runs.Subject]) -> str:
    student = subjects[0]
    return BASELINES[name][2] if name in BASELINES else f"the service, {student.engine} {student.version} {student.precision}"


def own_cpu(servers: Sequence[Server]) -> float:
    """CPU seconds that the servers and this process have used so far."""
    return time.process_time() + sum(server.usage().cpu for server in servers)


def load_of(began: float | None, own: float, servers: Sequence[Server], wall: float) -> Row:
    """Whether others used the machine in the last `wall` seconds, at whose start `machine_cpu` was `began` and `own_cpu` was `own`."""
    ended = machine_cpu()
    if began is None or ended is None:
        return {"others": None, "busy": False, "reasons": []}
    others = max(0.0, (ended - began - (own_cpu(servers) - own)) / wall / (os.cpu_count() or 1))
    reasons = [f"other processes used {others:.0%} of the machine"] if others > MAX_OTHERS else []
    return {"others": round(others, 4), "busy": bool(reasons), "reasons": reasons}


def _run(
    given: argparse.Namespace, argv: Sequence[str], subjects: Sequence[runs.Subject], questions: Sequence[Question], results: Row, cores: Cores
) -> runs.RunFile:
    data = data_file(given.data, len(questions))
    missing = [] if cores.client else ["client and servers on different cores: this system does not pin processes, or has one core"]
    if given.preset:
        missing.append("exact match and F1 of the paper-size student: its weights are random")
    name = "-".join(filter(None, ("paper" if given.preset else subjects[0].name, given.form)))
    return runs.new_run("service", name, subjects, [data], ["pocketqa", "benchmark", *argv], results, missing)


def names(text: str) -> list[str]:
    """Parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    def counts(text: str) -> list[int]:
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise OptionsError(f"Expected --users as numbers above 0, such as 1,8,32; found {text}.")
        return sorted({int(part) for part in parts})

    parser = argparse.ArgumentParser(
        prog="pocketqa benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workload", choices=("service",), required=True, help="this benchmark")
    parser.add_argument("--model", type=Path, default=MODELS / "student", metavar="DIR", help="the student that all serve (default: %(default)s)")
    parser.add_argument("--preset", choices=("paper",), help="a student of the paper's size from its configuration, with the vocabulary of --model")
    parser.add_argument("--form", metavar="NAME", help="with --preset: make this form of the student as well, onnx-int8 or openvino-int8")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="served beside it and not asked but for its lengths (default: models/teacher)")
    parser.add_argument("--data", default=str(SAMPLES), metavar="FILE", help="questions in SQuAD format (default: the project's own samples)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="a random sample of N questions; 0, the default, takes all")
    parser.add_argument("--users", type=counts, default=[1, 8, 32], metavar="N,...", help="users at once (default: 1,8,32)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="how often each question is asked (default: %(default)s)")
    parser.add_argument("--baselines", type=names, default=list(BASELINES), metavar="NAME,...", help=f"out of {', '.join(BASELINES)} (default: all)")
    parser.add_argument("--no-costs", action="store_true", help="leave out how the cost grows with the length of the passage")
    parser.add_argument("--serve-options", type=str.split, default=[], metavar="TEXT", help='more options of `pocketqa serve`, as "--batching off"')
    parser.add_argument("--seed", type=int, default=0, help="of questions, orders and draws (default: %(default)s)")
    parser.add_argument("--run-file", metavar="PATH", help="write the numbers to a run file, or into a folder")
    given = parser.parse_args(argv)
    if given.rounds < 1:
        raise OptionsError(f"Expected --rounds to be at least 1, found {given.rounds}.")
    if given.form and not given.preset:
        raise OptionsError(
            "--form goes with --preset. A form of a trained model is made and judged by `pocketqa package MODEL --form NAME --data FILE`, "
            "and asked with --model MODEL."
        )
    return given
