import os

import torch

if not torch.cuda.is_available():  # before Triton is imported, which torchvision does: its interpreter needs no GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")
