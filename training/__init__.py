"""What runs offline: datasets, cache, losses, trainer, evaluation, reports and the commands."""
