"""Callbacks: stop, resume, evaluate, log."""

from fmkit.callbacks._exact_resume import ExactResume

__all__ = ["ExactResume"]
