"""Real traces of small networks: where their time goes, that other tools open them, and `make profile` end to end."""

import gzip
import json
import platform
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity

from bench import cli
from bench.catalog import EXPERIMENTS, find
from bench.engine.execution import Execution
from bench.environment import device_slug, slug
from bench.errors import EXIT_USER
from bench.experiment import Experiment, Model
from bench.ledger import Ledger
from bench.machine import describe
from bench.measure import profiling, recording
from bench.measure.operators import IDLE, KINDS, OTHER
from bench.measure.profiling import distinct_networks, network_name
from bench.measure.recording import Profile, record
from bench.measure.trace import Event, memory_of_last_step, on_host
from bench.report.results import results_page
from bench.settings import DEFAULTS, Settings, settings
from models.attention import AttentionMethod
from models.convnext import insert_attention
from models.depthwise import use_methods
from models.description import Attention, Kind
from models.mixer import mixer
from models.vit import vit
from tests.conftest import CPU, small_network, small_run
from tests.test_makefile import Program, make_with, plan
from tests.test_trace import EAGER

SIDES = (1, 2, 4, 8)


def chosen(**values: str) -> Settings:
    return settings(**{name.lower(): value for name, value in (DEFAULTS | values).items()})


# ---- every family ---------------------------------------------------------------------------------------------------------


def attentive(kind: Kind, classes: int = 10) -> nn.Module:
    network = small_network(classes)
    insert_attention(network, {"P2": Attention(kind), "P3": Attention(kind)})  # type: ignore[arg-type]
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnext": small_network,
    "mhsa": lambda: attentive("mhsa"),
    "se": lambda: attentive("se"),
    "eca": lambda: attentive("eca"),
    "cbam": lambda: attentive("cbam"),
    "spatial": lambda: attentive("spatial"),
    "vit": lambda: vit(classes=10, width=24, depth=1),
    "mixer": lambda: mixer(classes=10, width=24, depth=1, token_hidden=8, channel_hidden=8),
}


def recorded(network: nn.Module) -> torch.profiler.profile:
    """Two forward and backward passes."""
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=2, repeat=1)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], schedule=schedule, record_shapes=True) as profiler:
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            logits.float().sum().backward()
            profiler.step()
    return profiler


def events_of(profiler: torch.profiler.profile, path: Path) -> list[Event]:
    profiler.export_chrome_trace(str(path))
    return list(json.loads(path.read_text())["traceEvents"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_operators_of_every_family_are_known(name: str, tmp_path: Path) -> None:
    breakdown = on_host(events_of(recorded(NETWORKS[name]()), tmp_path / "trace.json"))
    assert [line.name for line in breakdown.operators if line.kind == OTHER] == []
    assert breakdown.shares[OTHER] == 0


# ---- a small network's trace ---------------------------------------------------------------------------------------------


def small_experiment() -> Experiment:
    return small_run(precision="bf16").experiment


@pytest.fixture(scope="module", params=["convolution", "pairs", "matrix"])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def profile(method: str) -> Iterator[Profile]:
    """The engine's own step on a small network with attention, by each method of depthwise convolutions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.engine.network.build", lambda model, **options: attentive("mhsa"))
        patch.setattr(recording, "MOST_TIMED", 2)
        attention: AttentionMethod = "products" if method == "pairs" else "fused"
        yield record(small_experiment(), 10, Execution(depthwise=dict.fromkeys(SIDES, method), attention=attention), CPU)  # type: ignore[arg-type]


def test_shares_are_of_the_whole_and_hardly_anything_is_unknown(profile: Profile) -> None:
    breakdown = on_host(profile.events)
    assert sum(breakdown.shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in breakdown.shares.values())
    assert breakdown.shares[OTHER] < 0.05
    assert tuple(breakdown.shares) == KINDS
    in_lines = sum(line.host_ms for line in breakdown.operators) / breakdown.milliseconds
    assert in_lines + breakdown.shares[IDLE] == pytest.approx(1)


def test_every_method_of_depthwise_convolutions_counts_as_one_with_its_backward_pass(profile: Profile, method: str) -> None:
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    for line in on_host(profile.events).operators:
        calls[line.name][line.kind] += round(line.calls)
    depthwise = "depthwise convolution"
    own = {
        "convolution": {"aten::convolution_backward": 4},
        "pairs": {"_Pairs": 4, "_PairsBackward": 4},
        "matrix": {"aten::baddbmm": 4, "BaddbmmBackward0": 4, "IndexSelectBackward0": 4},
    }[method]
    for name, count in own.items():
        assert calls[name][depthwise] == count, name
        assert set(calls[name]) <= {depthwise, "convolution"}, name
    dense = calls["aten::convolution_backward"]["convolution"]
    assert dense == 4, "the stem and three layers between the stages"
    assert calls["aten::addmm"]["matrix product"] >= 8 and depthwise not in calls["aten::addmm"]


def test_attention_and_its_block_count_with_their_backward_pass(profile: Profile, method: str) -> None:
    breakdown = on_host(profile.events)
    if method == "pairs":  # attention is by products
        own = ("aten::baddbmm", "BaddbmmBackward0", "SoftmaxBackward0", "BmmBackward0")
        calls = {line.name: line.calls for line in breakdown.operators if line.kind == "attention"}
        assert [calls[name] for name in own] == [2] * 4 and calls["aten::bmm"] == 2 * 5
    else:
        kinds = {line.name: line.kind for line in breakdown.operators if "flash_attention" in line.name}
        assert len(kinds) == 2 and set(kinds.values()) == {"attention"}
    assert breakdown.shares["attention"] < breakdown.attention_blocks < 0.7
    without = on_host([event for event in profile.events if event["name"] != "attention block"])
    assert without.attention_blocks == 0
    forward_only = [
        event for event in profile.events if not event["name"].startswith("autograd::engine") and event["name"] != "aten::add"
    ]
    assert on_host(forward_only).attention_blocks < breakdown.attention_blocks


def with_even_memory_events(events: list[Event]) -> list[Event]:
    """The trace with the last step's allocations at equal distances: other work on the machine may stretch any part of it."""
    step = max((event for event in events if event["name"].startswith("ProfilerStep")), key=lambda event: event["ts"])
    begin, end = step["ts"], step["ts"] + step["dur"]
    memory = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    within = [event for event in memory if begin <= event["ts"] < end]
    even = [event | {"ts": begin + step["dur"] * place / len(within)} for place, event in enumerate(within)]
    return [event for event in memory if event["ts"] < begin] + even + [step]


def test_memory_starts_from_what_is_held_and_is_given_back(profile: Profile) -> None:
    timeline = memory_of_last_step(with_even_memory_events(profile.events), cuda=False)
    parameters = sum(p.numel() * 4 for p in attentive("mhsa").parameters())
    steps = 1 + 2 + 3 * recording.MOST_RECORDINGS  # the cold one, those timed, those recorded or before a recording
    images = steps * 10 * (40 * 40 * 3 + 8)
    assert profile.held_bytes == pytest.approx(3 * parameters + images, rel=0.05), "weights and AdamW's two averages"
    assert len(timeline) == 24
    assert parameters <= timeline[-1] < max(timeline) / 1.5, "gradients stay until the next step, activations are freed"


def test_the_table_of_operators_is_torchs_own(tmp_path: Path) -> None:
    profiler = recorded(attentive("mhsa"))
    events = events_of(profiler, tmp_path / "trace.json")
    calls, milliseconds = Counter[str](), Counter[str]()
    for line in on_host(events).operators:
        calls[line.name] += round(line.calls * 2)
        milliseconds[line.name] += line.host_ms * 2  # type: ignore[assignment]
    torchs = {event.key: event for event in profiler.key_averages() if not event.key.startswith("ProfilerStep")}
    assert calls.keys() == torchs.keys()
    spans = Counter(event["name"] for event in events if event.get("cat") == "cpu_op")
    for name, theirs in torchs.items():
        assert milliseconds[name] == pytest.approx(theirs.self_cpu_time_total / 1e3, rel=0.02, abs=0.02), name
        assert 0 < calls[name] <= theirs.count <= spans[name], "torch leaves out only some calls of an operator by itself"
    assert calls["aten::native_layer_norm"] == torchs["aten::native_layer_norm"].count == 2 * 11


# ---- traces that other tools open ----------------------------------------------------------------------------------------


def plugin_of(trace: str, folder: Path) -> Any:
    """The profiler plugin's web application with this trace loaded, without the threads and processes of a real server."""
    from torch_tb_profiler.plugin import TorchProfilerPlugin
    from torch_tb_profiler.profiler.data import RunProfileData
    from torch_tb_profiler.profiler.run_generator import RunGenerator
    from torch_tb_profiler.run import Run
    from werkzeug.test import Client

    path = folder / "step.pt.trace.json.gz"
    path.write_bytes(profiling._compressed(trace))
    run = Run("small", str(folder))
    run.add_profile(RunGenerator("step", None, RunProfileData.parse("step", None, str(path), str(folder))).generate_run_profile())
    plugin = object.__new__(TorchProfilerPlugin)
    plugin._runs, plugin._runs_lock = {"small": run}, threading.Lock()
    plugin._cache = SimpleNamespace(read=lambda name: Path(name).read_bytes())
    plugin._gpu_metrics_file_dict, plugin._temp_dir = {}, str(folder)

    def ask(route: str, **arguments: str) -> Any:
        query = {"run": "small", "worker": "step", "span": "default"} | arguments
        response = Client(plugin.get_plugin_apps()[route]).get(route, query_string=query)
        assert response.status_code == 200, route
        content = response.get_data()
        return json.loads(gzip.decompress(content) if response.headers.get("Content-Encoding") == "gzip" else content)

    return ask


def test_tensorboards_profiler_plugin_answers(profile: Profile, tmp_path: Path) -> None:
    ask = plugin_of(profile.trace, tmp_path)
    assert ask("/views") == ["Overview", "Operator", "Trace", "Memory"]
    assert len(ask("/overview")["steps"]["rows"]) == 2
    table = ask("/operation/table")["data"]
    assert {"aten::addmm", "aten::native_layer_norm"} <= {row["name"] for row in table}
    assert len(ask("/trace")["traceEvents"]) == len(profile.events)
    assert ask("/memory_curve")["rows"]["CPU"]


@pytest.mark.filterwarnings("ignore:The copy keyword is deprecated")  # the plugin's call of pandas
def test_the_plugin_shows_kernels(tmp_path: Path) -> None:
    properties = [{"id": 0, "name": "GPU", "totalGlobalMem": 1, "computeMajor": 9, "computeMinor": 0, "numSms": 2}]
    ask = plugin_of(json.dumps({"schemaVersion": 1, "deviceProperties": properties, "traceEvents": EAGER}), tmp_path)
    assert "Kernel" in ask("/views")
    rows = ask("/kernel/table", group_by="Kernel")["data"]["rows"]
    assert {row[0] for row in rows} >= {"gemm", "depthwise_kernel"}


def test_the_trace_is_chromes_format_and_names_no_host(profile: Profile) -> None:
    content = json.loads(profile.trace)
    assert content["host_name"] == content["traceName"] == ""
    assert not platform.node() or f'"{platform.node()}"' not in profile.trace
    spans = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert len(spans) > 100
    for event in spans:
        assert event["dur"] >= 0 and event["ts"] >= 0 and event["name"] and {"pid", "tid"} <= event.keys()


@pytest.mark.parametrize(
    ("seconds", "taken"), [([1.2], 1.2), ([2.0, 1.1], 1.1), ([2.0, 1.6, 1.8], 1.6)], ids=["as usual", "disturbed once", "always"]
)
def test_a_disturbed_recording_is_made_again(seconds: list[float], taken: float, monkeypatch: pytest.MonkeyPatch) -> None:
    left = list(seconds)
    prepared = recording._Prepared(step=lambda: None, held_bytes=lambda: 0)
    monkeypatch.setattr(recording, "_prepare", lambda *arguments, **options: prepared)
    monkeypatch.setattr(recording, "seconds_of", lambda step, device: 1.0)
    monkeypatch.setattr(recording, "_recorded", lambda *arguments: recording._Recording(left[0], str(left.pop(0))))
    assert record(small_experiment(), 10, Execution(), CPU).trace == str(taken)
    assert left == []


# ---- make profile ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every description gives a small ConvNeXt, with two blocks of its attention where it has any."""

    def build(model: Model, *, classes: int, **options: Any) -> nn.Module:
        return attentive(model.attention.kind, classes) if model.attention else small_network(classes)

    monkeypatch.setattr("bench.engine.network.build", build)
    monkeypatch.setattr(recording, "MOST_TIMED", 2)


def test_profile_end_to_end(small_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", "--profile", "smoke", "--device", "cpu", "--results", str(tmp_path), "--only"]
    assert cli.main([*arguments, "cifar100/baseline*"]) == 0
    text = capsys.readouterr().out
    (summary,) = (tmp_path / "profile").glob("*.json")
    operators = json.loads(summary.read_text())["networks"]["convnext-tiny-default-stem"]["operators"]
    assert "1/1 ConvNeXt-Tiny, default stem\n" in text and any(line["name"].startswith("aten::") for line in operators)
    printed = [line.split()[0] for line in text.split("host ms\n")[1].splitlines()[: len(operators)]]
    assert printed == [line["name"].split()[0] for line in operators], "the table on the terminal is the summary's, longest first"
    assert [line["host_ms"] for line in operators] == sorted((line["host_ms"] for line in operators), reverse=True)
    assert cli.main([*arguments, "cifar100/C_se"]) == 0
    content = summary.read_text()
    networks = json.loads(content)["networks"]
    assert set(networks) == {"convnext-tiny-default-stem", "convnext-tiny-default-stem-se-at-p3"}, "the earlier one stays"
    folder = summary.with_suffix("")
    traces = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert traces == {f"{name}/step.pt.trace.json.gz" for name in networks}
    assert len(content) < 5_500 * len(networks), "seventeen networks stay below 100 kB"
    assert str(tmp_path) not in content and (len(platform.node()) < 4 or platform.node() not in content)
    entry = networks["convnext-tiny-default-stem-se-at-p3"]
    assert entry["environment"]["depthwise"] == "convolution" and entry["environment"]["torch"] == torch.__version__
    assert entry["batch_size"] == 50 and 0 < entry["attention_blocks"] < 1
    assert entry["memory"]["peak_bytes"] == max(entry["memory"]["timeline_bytes"]) > entry["memory"]["held_bytes"] > 0
    page = results_page(list(Ledger(tmp_path).records()), tmp_path)
    assert "## Where the time goes" in page and f"[all figures](profile/{summary.name})" in page


def test_a_damaged_summary_is_one_clear_line(small_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", "--profile", "smoke", "--device", "cpu", "--results", str(tmp_path), "--only", "cifar100/baseline"]
    path = tmp_path / "profile" / f"{device_slug(describe(CPU))}.json"
    path.parent.mkdir()
    for content in ("{", "[]", '{"schema": 2}', '{"schema": 1}'):
        path.write_text(content)
        assert cli.main(arguments) == EXIT_USER
        error = capsys.readouterr().err
        assert f"{path.name}: expected a summary of profiles, found" in error and error.count("\n") == 1


def test_one_network_of_each_kind_unless_only_says_otherwise() -> None:
    networks = distinct_networks(chosen())
    assert {experiment.name for experiment in networks} == set(profiling.REPRESENTATIVE)
    assert len(networks) == len(profiling.REPRESENTATIVE) == 10
    assert {experiment.recipe.batch_size for experiment in networks} == {128}
    only = distinct_networks(chosen(ONLY="*/A_dual cifar100/B_heads? cifar100/baseline_F?", PROFILE="smoke"))
    assert [experiment.name.partition("/")[2] for experiment in only] == [
        "baseline_F0",
        "A_dual",
        "B_heads1",
        "B_heads2",
        "B_heads8",
    ]
    assert {experiment.recipe.batch_size for experiment in only} == {50}


def test_networks_have_names_of_their_own() -> None:
    models = {experiment.model for experiment in EXPERIMENTS}
    names = {network_name(model) for model in models}
    assert len({slug(name) for name in names}) == len(models) == 17
    assert network_name(find("cifar100/stem_dual").model) == "ConvNeXt-Tiny, CIFAR stem, MHSA with 4 heads at P2 and P3"
    assert network_name(find("cifar100/C_spatial").model) == "ConvNeXt-Tiny, default stem, spatial attention at P3"
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_make_profile_and_make_tensorboard(tmp_path: Path) -> None:
    python = Program(tmp_path / "venv/bin/python")
    assert make_with(python, "profile", "ONLY=cifar100/C_*").returncode == 0
    assert python.commands() == ["-m bench profile"]
    assert python.calls()[0]["variables"] == {"ONLY": "cifar100/C_*"}
    planned = plan("tensorboard", VIRTUAL_ENV="/opt/venv").splitlines()[-1]
    assert planned == '/opt/venv/bin/tensorboard --logdir "results" --host localhost --port 6006'
    planned = plan("tensorboard", "RESULTS=mine", "PORT=1", VIRTUAL_ENV="/opt/venv").splitlines()[-1]
    assert planned == '/opt/venv/bin/tensorboard --logdir "mine" --host localhost --port 1'


def test_the_methods_are_what_the_network_computes_by() -> None:
    """What the fixture above rests on: every depthwise convolution of the small network fits all methods."""
    assert use_methods(small_network(), dict.fromkeys(SIDES, "pairs")) == 4
