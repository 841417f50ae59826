"""Ways to run a trained model faster on this machine, and the choice between them."""

from vitrail.engines.choose import Optimized, optimize
from vitrail.engines.engine import Precision
from vitrail.engines.trial import Trial

__all__ = ["Optimized", "Precision", "Trial", "optimize"]
