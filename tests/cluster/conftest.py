"""A real Slurm on loopback: Debian's munged, slurmctld and slurmd with a configuration of their own, for one test session."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SECONDS_TO_START = 60

# cred_expire is also how long a requeued job waits before it starts again: two minutes by default
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
KillWait=10
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def reason_without() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for slurmd starts tasks as other users"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    try:
        import submitit  # noqa: F401
    except ImportError:
        return "needs submitit: `make test-cluster` installs it, or pip install --require-hashes -r requirements-cluster.lock"
    return ""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables with which Slurm's commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:-2]):  # munged wants a way to its socket for everybody
        parent.chmod(parent.stat().st_mode | 0o711)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    (folder / "state").mkdir()
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, ports=ports))
    variables = {"SLURM_CONF": str(configuration)}
    munge = [f"--{name}-file={folder}/{file}" for name, file in (("key", "key"), ("pid", "munge.pid"), ("log", "munge.log"))]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--seed-file={folder}/munge.seed", *munge],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration), "-N", host],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                started.append(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log))
            time.sleep(1)
        for _ in range(SECONDS_TO_START):
            info = subprocess.run(["sinfo", "-h", "-o", "%T"], env=os.environ | variables, capture_output=True, text=True)
            if "idle" in info.stdout:
                break
            time.sleep(1)
        else:
            logs = "\n".join((folder / f"{command[0]}.log").read_text()[-1000:] for command in commands)
            pytest.fail(f"Slurm did not become ready:\n{info.stderr}\n{logs}")
        yield variables
    finally:
        subprocess.run(["scancel", "--user=root"], env=os.environ | variables, capture_output=True)
        for _ in range(SECONDS_TO_START):
            if not subprocess.run(["squeue", "-h"], env=os.environ | variables, capture_output=True).stdout:
                break
            time.sleep(1)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
