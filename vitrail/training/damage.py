"""Images that a run could not read: each is said once, whichever process met it; too many end the run."""

from __future__ import annotations

import logging

from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.training.distributed import gathered

MOST = 0.05
logger = logging.getLogger("vitrail")


class Damaged:
    """The names of the damaged among the `images` that an epoch of a run reads of `source`, which lies at `place`."""

    def __init__(self, source: Source, place: str, images: int):
        self.source, self.place, self.images = source, place, images
        self.names: set[str] = set()

    def name(self, names: list[str]) -> None:
        """Say those that have not been said."""
        for name in names:
            if name not in self.names:
                self.names.add(name)
                logger.warning("left out: %s", name)

    def share(self) -> None:
        """What any process has found, all know; all call this together."""
        for names in gathered(sorted(self.names)):
            self.name(names)

    def refuse_too_many(self) -> None:
        """Raises UserError where more than 5 % of the images are damaged."""
        if len(self.names) > max(MOST * self.images, 1):
            raise UserError(
                f"{len(self.names)} of {self.images:,} images of {self.source.name} are damaged, more than "
                f"{MOST:.0%}; `vitrail doctor {self.place}` lists them all"
            )
