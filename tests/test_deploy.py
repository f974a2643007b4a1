"""The manifests in deploy/: their syntax, and that what they run is the suite's own contract."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import cli, errors
from bench.environment import ROOT
from bench.settings import DEFAULTS
from bench.shards import shard_of
from tests.test_shards import TEN_SEEDS


def manifest(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "deploy" / name).read_text()))


def is_shell(script: str) -> bool:
    return subprocess.run([shutil.which("bash") or "bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


def shard_in(script: str, **variables: str) -> str:
    """The shard that a script asks for once its variables are set, as the command line takes it."""
    for name, value in variables.items():
        script = script.replace(f"${name}", value)
    words = shlex.split(script)
    return str(cli.parser().parse_args(words[words.index("bench") + 1 :]).shard)


def covers_all(choices: list[str]) -> bool:
    return sorted(run.key for choice in choices for run in shard_of(TEN_SEEDS, choice)) == sorted(run.key for run in TEN_SEEDS)


def test_kubernetes_indices_are_the_shards() -> None:
    job = manifest("kubernetes.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] <= spec["completions"]
    (container,) = pod["containers"]
    assert container["command"] == ["sh", "-c"]
    (script,) = container["args"]
    assert is_shell(script) and script.startswith("exec "), "the signal must reach Python"
    assert covers_all([shard_in(script, JOB_COMPLETION_INDEX=str(index)) for index in range(spec["completions"])])


def test_kubernetes_treats_exit_statuses_as_they_are_meant() -> None:
    spec = manifest("kubernetes.yaml")["spec"]
    by_status = {
        status: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
        for status in rule["onExitCodes"]["values"]
    }
    assert by_status == {
        errors.EXIT_TERMINATED: "Ignore",
        errors.EXIT_FAILED: "FailIndex",
        errors.EXIT_USER: "FailIndex",
    }
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "a failure policy asks for it"
    assert "backoffLimitPerIndex" in spec, "FailIndex asks for it"


def test_kubernetes_mounts_what_the_image_expects() -> None:
    pod = manifest("kubernetes.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    image = (ROOT / "Dockerfile").read_text()
    assert f"DATASETS={mounted['datasets']}" in image and f"RESULTS={mounted['results']}" in image
    assert {variable["name"] for variable in container["env"]} <= set(DEFAULTS)


def test_skypilot_nodes_are_the_shards() -> None:
    task = manifest("skypilot.yaml")
    assert set(task) == {"name", "resources", "num_nodes", "workdir", "envs", "file_mounts", "setup", "run"}
    assert is_shell(task["setup"]) and is_shell(task["run"])
    assert set(task["envs"]) <= set(DEFAULTS) and task["envs"]["RESULTS"] in task["file_mounts"]
    nodes = task["num_nodes"]
    ranks = [shard_in(task["run"], SKYPILOT_NODE_RANK=str(rank), SKYPILOT_NUM_NODES=str(nodes)) for rank in range(nodes)]
    assert covers_all(ranks)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").iterdir()), ids=lambda path: path.name)
def test_targets_that_a_manifest_names_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ((?:[a-z][a-z-]+ ?)+)", path.read_text()):
        assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in target.split()), target
