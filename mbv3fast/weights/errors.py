"""The one error that reading weights raises."""


class WeightsError(ValueError):
    """Weights that can't be read, recognised or fitted; the message says which, and what to do."""
