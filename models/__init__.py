"""The networks of the study, usable without the rest: they know nothing of ``bench`` or ``data``.

    from models.convnext import convnext_tiny
    from models.description import Attention
    network = convnext_tiny(classes=100, attention={"P2": Attention("mhsa", heads=4)})

Each family is one file; each network maps images ``[N, 3, H, W]`` to logits ``[N, classes]``, and each family's ``part_of`` sorts
its parameters' names into the parts that the training regimes freeze and release. Nothing is imported here, so that who only
describes a network need not wait for torch.
"""
