"""Engines: they agree with PyTorch, take folders wherever they are, stay silent, and say plainly what they cannot do."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketqa import Reader, runtimes
from pocketqa.errors import CorruptFolder, EngineError, FolderError, IncompleteFolder, MissingExtra, OptionsError, StaleGraph
from pocketqa.folders import ModelFolder
from pocketqa.runtimes import available_engines, open_runtime, openvino, usable_cores
from pocketqa.runtimes.pytorch import PyTorchRuntime
from pocketqa.types import Batch, SpanLogits
from tests.packaged import checkpoint, copy_of, model_folder, random_batch

SHAPES = [(1, 5), (1, 512), (2, 64), (5, 33), (8, 17)]
GRAPH_ENGINES = ["onnxruntime", "openvino"]


def largest_difference(a: SpanLogits, b: SpanLogits, batch: Batch) -> float:
    """Over the positions that are no padding."""
    real = batch.mask > 0
    return max(float(np.abs(a.start - b.start)[real].max()), float(np.abs(a.end - b.end)[real].max()))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_fp32_engines_agree_with_pytorch_for_any_shape(engine, kind):
    folder = ModelFolder(model_folder(kind))
    exact, tested = open_runtime(folder, "pytorch"), open_runtime(folder, engine, precision="fp32", threads=1)
    for rows, length in SHAPES:
        batch = random_batch(rows, length, seed=length)
        expected, found = exact.forward(batch), tested.forward(batch)
        assert found.start.shape == found.end.shape == (rows, length)
        assert found.start.dtype == found.end.dtype == np.float32
        assert np.ptp(expected.start) > 1  # the tiny models tell positions apart
        assert largest_difference(expected, found, batch) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("engine", ["openvino", "pytorch"])
def test_bf16_stays_near_fp32(engine, kind):
    if engine == "openvino" and not openvino.computes_bf16():
        pytest.skip("this CPU does not compute bf16")
    folder = ModelFolder(model_folder(kind))
    exact, tested = open_runtime(folder, "pytorch"), open_runtime(folder, engine, precision="bf16")
    batch = random_batch(4, 40)
    expected = exact.forward(batch)
    assert tested.info.precision == "bf16"
    assert 0 < largest_difference(expected, tested.forward(batch), batch) < 0.1 * np.ptp(expected.start)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "pytorch"])
def test_padding_and_other_rows_change_nothing(engine):
    runtime = open_runtime(ModelFolder(model_folder("bert")), engine, precision="fp32")
    batch = random_batch(4, 48)
    together = runtime.forward(batch)
    for row in range(4):
        length = int(batch.mask[row].sum())
        part = np.s_[row : row + 1, :length]
        alone = runtime.forward(Batch(batch.ids[part], batch.token_types[part], batch.mask[part]))
        np.testing.assert_allclose(alone.start[0], together.start[row, :length], atol=1e-5)
        np.testing.assert_allclose(alone.end[0], together.end[row, :length], atol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "pytorch"])
def test_several_threads_get_their_own_answers(engine):
    runtime = open_runtime(ModelFolder(model_folder("distilbert")), engine, precision="fp32", threads=1)
    batches = [random_batch(1 + i % 3, 8 + 5 * i, seed=i) for i in range(12)]
    expected = [runtime.forward(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for batch, want, found in zip(batches, expected, pool.map(runtime.forward, batches), strict=True):
                assert largest_difference(want, found, batch) < 1e-5


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_a_folder_works_wherever_it_is(engine, tmp_path, monkeypatch):
    batch = random_batch(2, 20)
    expected = open_runtime(ModelFolder(model_folder("bert")), engine, precision="fp32").forward(batch)
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "snapshot").mkdir()
    moved = copy_of("bert", tmp_path / "with space" / "ünï")
    (tmp_path / "linked").symlink_to(moved)
    for number, path in enumerate(moved.iterdir()):  # the layout of the Hub's cache: every file a link to a blob of another name
        shutil.copyfile(path, tmp_path / "hub" / "blobs" / str(number))
        (tmp_path / "hub" / "snapshot" / path.name).symlink_to(f"../blobs/{number}")
    monkeypatch.chdir(tmp_path / "with space")
    for place in (moved, tmp_path / "linked", Path("ünï"), Path("..") / "linked", tmp_path / "hub" / "snapshot"):
        folder = ModelFolder(place)
        folder.verify()
        found = open_runtime(folder, engine, precision="fp32").forward(batch)
        assert largest_difference(expected, found, batch) < 1e-6, place


def test_no_room_to_put_linked_files_together(tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(model_folder("bert").iterdir()):
        shutil.copyfile(path, tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / path.name).symlink_to(tmp_path / "blobs" / str(number))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(FolderError, match=r"No such file or directory\. Set TMPDIR to a folder with room for [\d,]+ bytes"):
        open_runtime(ModelFolder(tmp_path / "snapshot"), "onnxruntime")


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_a_session_outlives_its_folder_and_the_working_directory(engine, tmp_path, monkeypatch):
    copy_of("distilbert", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    runtime = open_runtime(ModelFolder(Path("model")), engine, precision="fp32")
    batch = random_batch(2, 20)
    before = runtime.forward(batch)
    monkeypatch.chdir("/")
    shutil.rmtree(tmp_path / "model")
    assert largest_difference(before, runtime.forward(batch), batch) == 0


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_after_save_pretrained_the_graph_is_refused_until_it_is_packaged_again(engine, tmp_path):
    from transformers import AutoModelForQuestionAnswering

    from mobile_export.package import package

    folder = ModelFolder(copy_of("distilbert", tmp_path / "model"))
    model = AutoModelForQuestionAnswering.from_pretrained(folder.path)
    model.qa_outputs.bias.data += 1
    model.save_pretrained(folder.path)
    with pytest.raises(StaleGraph, match=r"qa_outputs|distilbert") as raised:
        open_runtime(folder, engine)
    command = f"pocketqa package {folder.path} --out {folder.path} --force"
    assert command in str(raised.value)
    with pytest.raises(StaleGraph, match="--force"):
        Reader.open(folder.path)
    package(str(folder.path), folder.path, force=True, say=lambda line: None)
    assert folder.verify().name == "tiny-distilbert"
    batch = random_batch(2, 20)
    assert (
        largest_difference(PyTorchRuntime(model).forward(batch), open_runtime(folder, engine, "fp32").forward(batch), batch) < 2e-2
    )  # float16 again


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_a_checkpoint_has_no_graph(engine):
    with pytest.raises(IncompleteFolder, match=r"only model\.safetensors.*pocketqa package"):
        open_runtime(ModelFolder(checkpoint("bert")), engine)


def test_pytorch_opens_a_checkpoint_and_names_what_is_wrong(tmp_path):
    batch = random_batch(2, 20)
    assert PyTorchRuntime.open(ModelFolder(checkpoint("bert"))).forward(batch).start.shape == (2, 20)
    with pytest.raises(IncompleteFolder, match=r"config\.json"):
        PyTorchRuntime.open(ModelFolder(tmp_path))
    damaged = copy_of("bert", tmp_path / "model")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CorruptFolder, match="PyTorch cannot load"):
        PyTorchRuntime.open(ModelFolder(damaged))


def test_pytorch_takes_a_model_in_training_and_gives_it_back_so():
    from transformers import AutoModelForQuestionAnswering

    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint("distilbert")).train()
    runtime = PyTorchRuntime(model)
    batch = random_batch(2, 20)
    first, second = runtime.forward(batch), runtime.forward(batch)
    assert largest_difference(first, second, batch) == 0  # no dropout
    assert model.training
    coarse = PyTorchRuntime(model, "bf16").forward(batch)
    assert 0 < largest_difference(first, coarse, batch) < 0.1 * np.ptp(first.start)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "pytorch"])
def test_a_batch_beyond_the_positions_is_an_engine_error(engine):
    runtime = open_runtime(ModelFolder(model_folder("bert")), engine, precision="fp32")
    with pytest.raises(EngineError, match="cannot compute a batch of 1 x 600"):
        runtime.forward(random_batch(1, 600))
    assert runtime.forward(random_batch(1, 20)).start.shape == (1, 20)  # and the engine goes on


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_a_graph_of_another_task_is_refused(engine, tmp_path):
    import onnx

    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    graph = onnx.load(str(folder.graph), load_external_data=False)
    for node in graph.graph.node:
        node.output[:] = ["logits" if name == "start_logits" else name for name in node.output]
    graph.graph.output[0].name = "logits"
    onnx.save(graph, str(folder.graph))
    with pytest.raises(EngineError, match=r"found .*to logits, end_logits"):
        open_runtime(folder, engine)


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_what_an_engine_refuses_is_an_engine_error_on_one_line(engine, tmp_path):
    import onnx

    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    graph = onnx.load(str(folder.graph), load_external_data=False)
    next(node for node in graph.graph.node if node.op_type == "Softmax").op_type = "Hardmin"
    onnx.save(graph, str(folder.graph))
    with pytest.raises(EngineError, match=r"cannot open .*model\.onnx: .*Hardmin") as raised:
        open_runtime(folder, engine)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"engine": "tensorflow"}, EngineError, "auto, onnxruntime, openvino, pytorch, found 'tensorflow'"),
        ({"engine": "onnxruntime", "precision": "bf16"}, OptionsError, "onnxruntime computes in fp32"),
        ({"precision": "int3"}, OptionsError, "int3"),
        ({"precision": "int8"}, IncompleteFolder, "-int8 --data FILE"),
        ({"engine": "pytorch", "precision": "int8"}, OptionsError, "pytorch computes in fp32 or bf16, not in 'int8'"),
        ({"engine": "onnxruntime", "precision": "int8"}, IncompleteFolder, "--form onnx-int8 --data FILE"),
        ({"engine": "openvino", "precision": "int8"}, IncompleteFolder, "--form openvino-int8 --data FILE"),
        ({"engine": "onnxruntime", "precision": "bf16", "threads": 0}, OptionsError, "fp32.*threads must be 1 to 4,096, found 0"),
    ],
)
def test_settings_that_cannot_be(settings, error, message):
    with pytest.raises(error, match=message):
        open_runtime(ModelFolder(model_folder("bert")), **settings)


def test_info_says_what_computes():
    runtime: Any = open_runtime(ModelFolder(model_folder("bert")), "onnxruntime", threads=2)
    assert (runtime.info.engine, runtime.info.precision, runtime.info.threads) == ("onnxruntime", "fp32", 2)
    assert runtime._session.get_session_options().intra_op_num_threads == 2
    assert runtime.lengths is None and runtime.max_batch is None
    default = open_runtime(ModelFolder(model_folder("bert")), "openvino", precision="fp32")
    assert (default.info.engine, default.info.precision, default.info.threads) == ("openvino", "fp32", usable_cores())
    one: Any = open_runtime(ModelFolder(model_folder("bert")), "openvino", precision="fp32", threads=1)
    assert one.info.threads == one._compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_auto_takes_openvino_where_the_processor_computes_bf16():
    if not openvino.computes_bf16():
        pytest.skip("this CPU does not compute bf16")
    runtime = open_runtime(ModelFolder(model_folder("bert")))
    assert (runtime.info.engine, runtime.info.precision) == ("openvino", "bf16")
    assert open_runtime(ModelFolder(model_folder("bert")), precision="fp32").info.engine == "onnxruntime"


def test_auto_without_bf16_says_why_it_takes_onnxruntime(monkeypatch, caplog):
    monkeypatch.setattr(openvino, "computes_bf16", lambda: False)
    folder = ModelFolder(model_folder("bert"))
    with caplog.at_level(logging.INFO, "pocketqa"):
        assert open_runtime(folder).info.engine == "onnxruntime"
    assert "does not compute in bf16" in caplog.text
    with pytest.raises(EngineError, match="No installed engine computes in bf16"):
        open_runtime(folder, precision="bf16")
    with pytest.raises(EngineError, match="no bf16 arithmetic"):
        open_runtime(folder, "openvino", precision="bf16")
    assert open_runtime(folder, "openvino").info.precision == "fp32"


def test_auto_warns_when_openvino_fails_and_goes_on(monkeypatch, caplog):
    def broken(*arguments):
        raise EngineError("OpenVINO is installed but does not load on this machine: libx.so")

    monkeypatch.setattr(openvino, "computes_bf16", lambda: True)
    monkeypatch.setattr(openvino, "OpenVinoRuntime", broken)
    with caplog.at_level(logging.WARNING, "pocketqa"):
        assert open_runtime(ModelFolder(model_folder("bert"))).info.engine == "onnxruntime"
    assert "libx.so" in caplog.text


def test_without_openvino_the_extra_is_named(monkeypatch, caplog):
    openvino.silent_openvino.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    folder = ModelFolder(model_folder("bert"))
    assert "openvino" not in available_engines() and "onnxruntime" in available_engines()
    with caplog.at_level(logging.INFO, "pocketqa"):
        assert open_runtime(folder).info.engine == "onnxruntime"
    assert "'openvino' is not installed" in caplog.text
    with pytest.raises(MissingExtra, match=r"pocketqa\[openvino\]"):
        openvino.silent_openvino()


def test_a_folder_of_an_engines_name_is_no_engine(tmp_path, monkeypatch):
    """In the working directory it can be imported, as a package without files."""
    (tmp_path / "openvino").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "openvino", None)
    del sys.modules["openvino"]  # and back, or away, after the test
    openvino.silent_openvino.cache_clear()
    assert "openvino" not in available_engines()
    with pytest.raises(MissingExtra, match=r"pocketqa\[openvino\]"):
        openvino.silent_openvino()


def write_tree(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/cpu.max": "200000 100000\n", "cgroup/a/b/cpu.max": "max 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/host/path\n", "cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n", "cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
          "cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 4),
        ({"proc/self/cgroup": "3:cpu:/\n", "cgroup/cpu/cpu.cfs_quota_us": "-1\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
    ids=["no groups", "no quota", "half cores count down", "the group above binds", "a path of the host", "version 1", "version 1 without quota"],
)  # fmt: skip
def test_usable_cores_follow_the_quota(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_cores(*write_tree(tmp_path, files)) == expected


def test_usable_cores_follow_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_cores(*write_tree(tmp_path, {"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "1000000 100000\n"})) == 2


SILENCE = """
    import json, os, sys, time

    seen = []
    NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "http.client.connect")
    PROCESSES = ("os.fork", "os.posix_spawn", "subprocess.Popen")  # openvino-telemetry sends from one of its own

    def listen(event, arguments):
        if event in NETWORK + PROCESSES:
            seen.append(event)

    sys.addaudithook(listen)
    from pathlib import Path
    import numpy as np
    from pocketqa.folders import ModelFolder
    from pocketqa.runtimes import open_runtime
    from pocketqa.types import Batch

    ones = np.ones((1, 8), dtype=np.int32)
    runtimes = [open_runtime(ModelFolder(Path(sys.argv[1])), engine, precision="fp32") for engine in ("onnxruntime", "openvino")]
    for runtime in runtimes:
        runtime.forward(Batch(ones, ones, ones))
    time.sleep(1)  # both send from threads of their own
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{name}")]
    sockets = [link for link in links if link.startswith("socket:")]
    private = [link for link in links if link.startswith(os.environ["HOME"])]
    during = list(seen)
    import socket
    try:
        socket.create_connection(("localhost", 9), timeout=0.1)
    except OSError:
        pass
    print(json.dumps({"during": during, "sockets": sockets, "private": private, "harness": seen[len(during):]}))
"""


def test_engines_report_to_nobody(tmp_path):
    """Both engines bring telemetry that is on by default; opened by PocketQA they write nothing at home and talk to nobody."""
    home = tmp_path / "home"
    home.mkdir()
    switches = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")
    environment = {name: value for name, value in os.environ.items() if name not in switches} | {"HOME": str(home), "TMPDIR": str(home)}
    root = str(Path(runtimes.__file__).parents[2])
    script = textwrap.dedent(SILENCE)
    done = subprocess.run(
        [sys.executable, "-c", script, str(model_folder("bert"))],
        env=environment | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["harness"], "the listener hears a connection when there is one"
    assert found["during"] == [] and found["sockets"] == [] and found["private"] == []
    assert list(home.rglob("*")) == []
