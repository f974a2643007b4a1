"""The files that ``make bench-throughput`` writes, read and checked before anything is printed from them."""

import json
from pathlib import Path
from typing import Any

from bench.catalog import EXPERIMENTS
from bench.errors import UserError, found_in
from bench.measure.contents import THROUGHPUT_SCHEMA
from bench.schema import BF16, COUNT, FLAG, LIST, OBJECT, POSITIVE, TEXT, Field, Kind, faults_in
from bench.settings import is_count

Report = dict[str, Any]

HEADLINE = "cifar100/baseline"
NETWORKS = {  # by the tables' name: an experiment that trains it
    "ConvNeXt-Tiny, default stem": HEADLINE,
    "ConvNeXt-Tiny, CIFAR stem": "cifar100/matched_convnext",
    "with MHSA at P3": "cifar100/C_mhsa",
    "with SE at P3": "cifar100/C_se",
    "with ECA at P3": "cifar100/C_eca",
    "with CBAM at P3": "cifar100/C_cbam",
    "with spatial attention at P3": "cifar100/C_spatial",
    "with MHSA at P2 and P3": "cifar100/A_dual",
    "CIFAR stem, with MHSA at P2 and P3": "cifar100/stem_dual",
    "ViT-Tiny": "cifar100/scratch_vit_tiny",
    "Mixer-Tiny": "cifar100/scratch_mixer_tiny",
    "matched ViT": "cifar100/matched_vit",
}
PARTIAL = "-part"  # ends the name of a file with some of the measurements

EXPERIMENT = Kind("an experiment of the catalog", {experiment.name for experiment in EXPERIMENTS}.__contains__)
BY_COUNT = Kind(
    "an object by numbers of processes", lambda value: isinstance(value, dict) and all(is_count(key, 1) for key in value)
)


def _spread(path: str) -> list[Field]:
    return [Field(path, OBJECT), *(Field(f"{path}.{name}", POSITIVE) for name in ("median", "low", "high"))]


def _execution(path: str) -> list[Field]:
    flags = [Field(f"{path}.{name}", FLAG) for name in ("compiled", "cuda_graph")]
    return [Field(path, OBJECT), Field(f"{path}.bf16", BF16), Field(f"{path}.depthwise", TEXT), *flags]


FIELDS = (
    Field("code", OBJECT),
    Field("code.commit", TEXT.or_null()),
    Field("code.dirty", FLAG.or_null()),
    Field("code.sources_sha256", TEXT),
    Field("environment", OBJECT),
    Field("environment.device", TEXT),
    Field("environment.threads", COUNT),
    Field("environment.cuda", TEXT.or_null()),
    Field("environment.torch", TEXT),
    Field("seconds", POSITIVE),
    Field("peak", OBJECT),
    *(Field(f"peak.{name}", POSITIVE) for name in ("fp32_flops_per_second", "bf16_flops_per_second", "bytes_per_second")),
    Field("vendor_peak", OBJECT.or_null()),
    *(Field(f"vendor_peak.{name}", POSITIVE) for name in ("flops_per_second", "bytes_per_second")),
    Field("loops", OBJECT),
    Field("loops.experiment", EXPERIMENT),
    Field("loops.batch_size", COUNT),
    Field("loops.precision", TEXT),
    *_execution("loops.execution"),
    Field("loops.best_flags", OBJECT),
    *(Field(f"loops.best_flags.{name}", FLAG) for name in ("bf16", "channels_last", "fused")),
    Field("loops.best_flags.workers", COUNT),
    Field("loops.images_per_second", OBJECT),
    *_spread("loops.images_per_second.*"),
    Field("loops.ratios", OBJECT),
    *_spread("loops.ratios.*"),
    Field("families", OBJECT),
    Field("families.*", OBJECT),
    Field("families.*.experiment", EXPERIMENT),
    Field("families.*.batch_size", COUNT),
    Field("families.*.precision", TEXT),
    *_execution("families.*.execution"),
    *_spread("families.*.training_images_per_second"),
    *_spread("families.*.inference_images_per_second"),
    *(
        Field(f"families.*.{name}", POSITIVE)
        for name in ("seconds_per_epoch", "roofline_seconds_per_epoch", "flops_per_second", "warm_up_seconds")
    ),
    Field("families.*.inference_batch_size", COUNT),
    Field("families.*.peak_memory_bytes", COUNT.or_null()),
    Field("families.*.joules_per_1000_images", POSITIVE.or_null()),
    Field("families.*.best_batch", OBJECT.or_null()),
    Field("families.*.best_batch.batch_size", COUNT),
    Field("families.*.best_batch.training_images_per_second", POSITIVE),
    Field("families.*.best_batch.tried", LIST),
)
IN_NEWER_FILES = (
    Field("sharing", BY_COUNT.or_null()),
    Field("sharing.*", POSITIVE),
    Field("methods", OBJECT),
    Field("methods.*", OBJECT),
    Field("methods.*.*", POSITIVE),
    Field("families.*.windows", COUNT),
    Field("families.*.least_bytes_per_second", POSITIVE),
)


def read_reports(folder: Path) -> list[tuple[Path, Report]]:
    """All measurements under ``folder``, by file name.

    Raises:
        UserError: a file is no measurement.
    """
    return [(path, read_report(path)) for path in sorted(folder.glob("*.json"))]


def read_report(path: Path) -> Report:
    """Read one measurement.

    Raises:
        UserError: it is missing, no JSON, has another schema, or a field is absent or of another kind.
    """
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: expected a throughput measurement, found {found_in(error)}; `make bench-throughput` writes one"
        ) from error
    if not isinstance(report, dict) or report.get("schema") != THROUGHPUT_SCHEMA:
        raise UserError(
            f"{path}: expected a throughput measurement of schema {THROUGHPUT_SCHEMA}; make one with `make bench-throughput`"
        )
    for fault in faults_in(report, [*((field, False) for field in FIELDS), *((field, True) for field in IN_NEWER_FILES)]):
        raise UserError(f"{path}: expected a throughput measurement; {fault}; make it again with `make bench-throughput`")
    return report
