"""A model as data: an encoder's sizes, a head, the sites of both, and the families with their names in files."""

from __future__ import annotations

from q8core.model.head import Activation, HeadSpec
from q8core.model.sites import Site, sites
from q8core.model.spec import EncoderSpec

__all__ = ["Activation", "EncoderSpec", "HeadSpec", "Site", "sites"]
