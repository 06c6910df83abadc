"""What a model is, as data: an encoder's sizes, a head, the sites of both, and the families that name them in files."""

from __future__ import annotations

from q8core.model.head import Activation, HeadSpec
from q8core.model.sites import Site, sites
from q8core.model.spec import EncoderSpec

__all__ = ["Activation", "EncoderSpec", "HeadSpec", "Site", "sites"]
