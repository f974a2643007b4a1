"""The page's section on where the time goes, from summaries made by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from bench.measure.operators import KINDS
from bench.report.where_time_goes import paragraph, sparkline, where_time_goes


def entry_of(name: str, **changes: Any) -> dict[str, Any]:
    """An entry of a summary with round numbers."""
    shares = dict.fromkeys(KINDS, 0.0) | {
        "matrix product": 0.5, "copy": 0.2, "depthwise convolution": 0.1, "norm": 0.02, "bookkeeping": 0.08, "idle": 0.1,
    }  # fmt: skip
    environment = {"cuda": None, "device": "Processor", "threads": 2, "torch": "2.13.0", "bf16": "fp32", "compiled": False}
    return {
        "name": name,
        "experiment": "cifar100/C_se",
        "environment": environment | {"cuda_graph": False, "depthwise": "1x1 pairs"},
        "code": {"commit": "c" * 40, "dirty": False},
        "batch_size": 128,
        "precision": "bf16",
        "step_ms": 1234.5,
        "profiled_step_ms": 1300.0,
        "shares": shares,
        "attention_blocks": 0.004,
        "operators": [
            {"name": "aten::mm", "kind": "matrix product", "calls": 9.0, "host_ms": 600.0, "device_ms": 0.0, "share": 0.45},
            {"name": "aten::copy_", "kind": "copy", "calls": 9.0, "host_ms": 250.0, "device_ms": 0.0, "share": 0.19},
        ],
        "operator_calls": 21532.0,
        "launches": 0.0,
        "kernels": 0.0,
        "memory": {"held_bytes": 350_000_000, "peak_bytes": 800_000_000, "timeline_bytes": [400_000_000, 800_000_000]},
        "without_graph": None,
    } | changes


GPU = {
    "cuda": "13.0", "device": "GPU", "threads": 8, "torch": "2.13.0", "bf16": "units", "compiled": False, "cuda_graph": True,
    "depthwise": "convolution",
}  # fmt: skip


def test_a_paragraph_says_where_the_time_goes() -> None:
    assert paragraph(entry_of("Small")) == (
        "**Small.** A step of 128 images takes 1,234 ms. The time goes to matrix products (50%), copies (20%), depthwise "
        "convolutions (10%), and all other kinds of work (2%). The longest operators: `aten::mm` (matrix product, 45%), "
        "`aten::copy_` (copy, 19%). Attention blocks, with their norms, linear layers and gates, take 0.4%. In 18% of the time "
        "nothing is computed: bookkeeping and Python around 21,532 operator calls. Memory peaks at 800 MB, of which 350 MB stay "
        "from step to step."
    )


def test_a_paragraph_admits_that_its_shares_were_disturbed() -> None:
    said = "The recorded steps took 1.5 times as long as those without the profiler: something else disturbed these shares."
    disturbed = {"step_ms": 1000.0, "profiled_step_ms": 1500.0}
    assert said in paragraph(entry_of("Small", **disturbed))
    assert "disturbed" not in paragraph(entry_of("Small", environment=GPU, **disturbed)), "there the host alone is slowed"
    assert "disturbed" not in paragraph(entry_of("Small", step_ms=1000.0, profiled_step_ms=1240.0))
    said = "The steps without the profiler took 1.2 times as long as those with it: something else disturbed them."
    assert said in paragraph(entry_of("Small", step_ms=1200.0, profiled_step_ms=1000.0))
    assert "disturbed" not in paragraph(entry_of("Small", step_ms=1000.0, profiled_step_ms=990.0))


def test_a_paragraph_on_a_gpu_compares_the_graph_with_launches() -> None:
    graph = {"step_ms": 21.5, "idle": 0.75, "launches": 1900.0}
    text = paragraph(entry_of("Small", environment=GPU, step_ms=5.25, without_graph=graph, attention_blocks=0.0))
    assert "takes 5.25 ms." in text and "Attention blocks" not in text
    assert (
        "As one CUDA graph the step leaves the device idle for 10% of the time; launched kernel by kernel it takes 21.5 ms, idle "
        "for 75%, with 1,900 launches." in text
    )
    text = paragraph(entry_of("Small", environment=GPU | {"cuda_graph": False}, launches=1900.0))
    assert "The device idles for 10% of the time, with 1,900 launches a step." in text


def test_the_section_has_a_table_for_each_device(tmp_path: Path) -> None:
    assert where_time_goes(tmp_path / "profile", tmp_path) == ""
    (tmp_path / "profile").mkdir()
    first = {"b": entry_of("Second", experiment="cifar100/matched_vit"), "a": entry_of("First", experiment="cifar100/baseline")}
    (tmp_path / "profile" / "processor.json").write_text(json.dumps({"schema": 1, "networks": first}))
    (tmp_path / "profile" / "gpu.json").write_text(
        json.dumps({"schema": 1, "networks": {"a": entry_of("First", environment=GPU, kernels=812.0, launches=1.0)}})
    )
    section = where_time_goes(tmp_path / "profile", tmp_path)
    assert section.startswith("## Where the time goes\n\nMade by `make profile`")
    assert re.findall(r"^### (.*)", section, re.MULTILINE) == [
        "Where the time goes: GPU",
        "Where the time goes: Processor, 2 threads",
    ]
    gpu, _, processor = section.partition("goes: Processor")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in processor.splitlines() if line.startswith("| ")]
    first_row = dict(zip(rows[0], rows[1], strict=True))
    assert first_row == {
        "network": "First",
        "ms a step": "1,234",
        "ms, profiled": "1,300",
        "depthwise convolution": "10.0%",
        "matrix product": "50.0%",
        "norm": "2.0%",
        "copy": "20.0%",
        "bookkeeping": "8.0%",
        "idle": "10.0%",
        "in attention blocks": "0.4%",
        "operator calls": "21,532",
        "peak memory (MB)": "800",
        "memory over a step": "▅█",
        "batch": "128",
        "mode": "bf16 computed in fp32; depthwise 1x1 pairs",
    }
    assert rows[2][0] == "Second", "in the catalog's order"
    assert (
        "| 812 " in gpu
        and "bf16; depthwise convolution; CUDA graph" in gpu
        and "operator calls" not in gpu.partition("**")[0][-2000:]
    )
    assert "Torch 2.13.0, commit `cccccccccccc`; [all figures](profile/processor.json)." in section
    assert where_time_goes(tmp_path / "profile", tmp_path) == section


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert sparkline([0, 0]) == "▁▁"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": 2}', '{"schema": 1, "networks": {}}', '{"schema": 1, "networks": {"a": {}}}']
)
def test_a_damaged_summary_is_one_clear_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(content)
    with pytest.raises(
        UserError, match=r"device.json: expected a summary of profiles of schema 1, found .*run `make profile`"
    ) as error:
        where_time_goes(tmp_path, tmp_path)
    assert "\n" not in str(error.value)
