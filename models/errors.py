"""What can go wrong with weights, as one line for the person who has to act on it."""


class WeightsError(ValueError):
    """A weights file that is missing, damaged, unsafe or made for another network."""
