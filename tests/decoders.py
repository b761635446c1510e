"""Tiny decoders and their ids, by the name under which programs beside the repository import them."""

from __future__ import annotations

from tests.support.decoders import write_decoder, write_ids

__all__ = ["write_decoder", "write_ids"]
