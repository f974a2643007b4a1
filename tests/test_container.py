"""How make builds and starts the container, with an engine that only writes down how it was called."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.test_makefile import MAKEFILE, ROOT, Program, make, plan


@pytest.fixture
def docker(tmp_path: Path) -> Program:
    return Program(tmp_path / "bin/docker")


def contain(docker: Program, *arguments: str, **variables: str) -> list[str]:
    """The arguments with which make starts the container."""
    folder = docker.log.parent
    variables.setdefault("RESULTS", str(folder / "made/results"))
    variables.setdefault("DATASETS", str(folder / "made/datasets"))
    result = make(*arguments, PATH=f"{folder}:{os.environ['PATH']}", **variables)
    assert result.returncode == 0, result.stderr
    run = docker.calls()[-1]["arguments"]
    assert run[0] == "run"
    return list(run)


def values(arguments: list[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == flag]


def test_several_gpus_are_one_field_of_csv(docker: Program) -> None:
    assert values(contain(docker, "container", "TARGET=list", "GPUS=device=0,1"), "--gpus") == ['"device=0,1"']
    assert values(contain(docker, "container", "TARGET=list", "GPUS=device=1"), "--gpus") == ["device=1"]


def test_an_engine_that_is_not_there_is_named() -> None:
    result = make("container", "TARGET=list", "DOCKER=no-engine run")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "make: expected the engine no-engine, found none; install it, or set DOCKER to another"


def test_the_container_is_the_users_own(docker: Program, tmp_path: Path) -> None:
    run = contain(docker, "container", "TARGET=smoke")
    made = docker.log.parent / "made"
    assert values(run, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert values(run, "--volume") == [f"{ROOT}:/bench:ro", f"{made}/datasets:/datasets", f"{made}/results:/results"]
    assert (made / "datasets").is_dir() and (made / "results").is_dir()
    assert values(run, "--gpus") == ["all"]
    assert "--ipc=host" in run
    assert "--tty" not in run  # there is none here
    assert run[-3:] == ["convnext-attention-bench", "make", "smoke"]
    assert [name.partition("=")[0] for name in values(run, "--env")] == ["BENCH_COMMIT"]


@pytest.mark.parametrize(("target", "network"), [("smoke", ["none"]), ("test check", ["none"]), ("data", []), ("all", [])])
def test_only_what_downloads_has_a_network(docker: Program, target: str, network: list[str]) -> None:
    run = contain(docker, "container", f"TARGET={target}")
    assert values(run, "--network") == network
    assert run[-len(target.split()) - 1 :] == ["make", *target.split()]


def test_variables_and_files_reach_the_container(docker: Program, tmp_path: Path) -> None:
    weights, one, two = tmp_path / "convnext.pth", tmp_path / "one", tmp_path / "two"
    weights.write_text("")
    one.mkdir()
    two.mkdir()
    run = contain(docker, "container", "TARGET=all", "SEEDS=0 1", ONLY="fashion/*", WEIGHTS=str(weights), FROM=f"{one} {two}")
    variables = dict(value.split("=", 1) for value in values(run, "--env"))
    del variables["BENCH_COMMIT"]
    expected = {"SEEDS": "0 1", "ONLY": "fashion/*", "WEIGHTS": "/weights/convnext.pth", "FROM": f"{one} {two}"}
    assert variables == expected
    assert values(run, "--volume")[3:] == [f"{weights}:/weights/convnext.pth:ro", f"{one}:{one}:ro", f"{two}:{two}:ro"]


def test_every_variable_that_means_something_inside_reaches_it(docker: Program) -> None:
    """IMAGES=none that is lost would put test images into files that are published."""
    mounted = {"DATASETS", "RESULTS", "WEIGHTS", "FROM"}
    outside = {"LAUNCHER", "UPGRADE", "PORT", "TARGET", "GPUS", "DOCKER", "IMAGE"}
    documented = set(re.findall(r"^#[:=] ([A-Z_]+)", MAKEFILE, re.MULTILINE))
    assert mounted | outside < documented
    given = {name: f"value of {name}" for name in documented - mounted - outside}
    run = contain(docker, "container", "TARGET=all", *(f"{name}={value}" for name, value in given.items()))
    variables = dict(value.split("=", 1) for value in values(run, "--env"))
    del variables["BENCH_COMMIT"]
    assert variables == given


@pytest.mark.parametrize("name", ["WEIGHTS", "FROM"])
def test_what_is_not_there_is_not_mounted(docker: Program, tmp_path: Path, name: str) -> None:
    folders = {"RESULTS": str(tmp_path / "results"), "DATASETS": str(tmp_path / "datasets")}
    path = f"{docker.log.parent}:{os.environ['PATH']}"
    result = make("container", "TARGET=data", f"{name}={tmp_path}/absent", PATH=path, **folders)
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == f"make: expected a file or folder to mount, found none: {tmp_path}/absent"
    assert docker.calls() == []


def test_a_machine_without_a_gpu_and_other_engines(docker: Program) -> None:
    run = contain(docker, "shell", "GPUS=none", "DOCKER_FLAGS=--userns=keep-id", "IMAGE=mine")
    assert values(run, "--gpus") == []
    assert values(run, "--network") == ["none"]
    assert run[-3:] == ["--userns=keep-id", "mine", "bash"]
    assert "\npodman run " in plan("shell", DOCKER="podman")


def test_the_container_needs_a_target_and_an_image(tmp_path: Path) -> None:
    docker = Program(tmp_path / "bin/docker", {"image inspect convnext-attention-bench": 1})
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    folders = {"RESULTS": str(tmp_path / "results"), "DATASETS": str(tmp_path / "datasets")}
    for arguments, message in (
        (["container"], "make container: expected TARGET"),
        (
            ["container", "TARGET=smoke"],
            "make: expected the image convnext-attention-bench, found none; run `make image`",
        ),
    ):
        result = make(*arguments, PATH=path, **folders)
        assert result.returncode == 2
        assert result.stderr.startswith(message)
    assert docker.commands() == ["image inspect convnext-attention-bench"]


def test_a_path_that_cannot_be_mounted_is_refused() -> None:
    result = make("-n", "shell", RESULTS="a b")
    assert result.returncode == 2
    assert "a b: expected a path without spaces" in result.stderr


def test_image_names_commit_and_base(docker: Program) -> None:
    make("image", PATH=f"{docker.log.parent}:{os.environ['PATH']}")
    make("image", "BASE_IMAGE=other@sha256:0", PATH=f"{docker.log.parent}:{os.environ['PATH']}")
    default, other = (call["arguments"] for call in docker.calls())
    assert default[:3] == ["build", "--tag", "convnext-attention-bench"]
    assert default[-1] == "."
    assert [value.partition("=")[0] for value in values(default, "--build-arg")] == ["BENCH_COMMIT"]
    assert values(other, "--build-arg")[0] == "BASE_IMAGE=other@sha256:0"


def test_the_base_is_pinned_by_digest() -> None:
    instructions = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and line[0] not in "# "]
    assert re.fullmatch(r"ARG BASE_IMAGE=nvidia/cuda:[\w.-]+@sha256:[0-9a-f]{64}", instructions[0])
    assert instructions[1] == "FROM ${BASE_IMAGE}"


def test_the_image_leaves_out_what_git_leaves_out() -> None:
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert ".git" in left_out
    for line in (ROOT / ".gitignore").read_text().splitlines():
        pattern = line.strip("/")
        assert not pattern or {pattern, f"**/{pattern}"} & set(left_out), f".gitignore has {line}, .dockerignore does not"
