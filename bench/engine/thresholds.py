"""From when on one way of computing is taken for another; the report states it too."""

# A method replaces the one before it only where it takes less than the inverse of this of its time: noise must not choose.
FASTER_BY = {"cpu": 1.2, "cuda": 1.05}
BATCH = 128  # images of a measurement: the recipes' batch
