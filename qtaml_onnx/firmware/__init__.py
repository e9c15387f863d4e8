"""Firmware: the memory image of a hardened model, the C code that reads it, and the way back from a dumped image."""

from __future__ import annotations
