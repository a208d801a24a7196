"""Finetuning: tasks one after the other, nothing done against forgetting."""

from .base import Method


class Finetune(Method):
    """The base class does it all: no other examples, no penalty."""
