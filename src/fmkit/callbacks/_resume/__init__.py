"""`ExactResume`: a run that is killed continues with the same bits."""

from fmkit.callbacks._resume._exact_resume import ExactResume

__all__ = ["ExactResume"]
