"""Loaded once, by the process that the others are forked from: torch, and what a first run would spend seconds on."""

import torch

from bench.catalog import EXPERIMENTS
from bench.measure.cost import cost_of
from bench.profiles import smoke
from data import load
from tests.reliability import process

torch.set_num_threads(1)
for experiment in map(smoke, EXPERIMENTS):
    if experiment.name in process.EXPERIMENTS:
        cost_of(experiment.model, len(load(experiment.dataset).classes))
