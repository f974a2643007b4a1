"""One run: data on the device, network, regime, step, evaluation, checkpoint."""
