"""`fmkit.enable_op_determinism` switches on what the backend has for it."""

import os

import pytest
from fresh_process import run_python

import fmkit


@pytest.mark.backend("torch")
def test_it_asks_pytorch_for_deterministic_algorithms(monkeypatch):
    import torch

    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    fmkit.enable_op_determinism()
    assert asked == [True]
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # as it was set


@pytest.mark.backend("torch")
@pytest.mark.long
def test_on_pytorch_algorithms_are_deterministic():
    printed = run_python(
        """
        import os
        import fmkit
        import torch

        fmkit.enable_op_determinism()
        print(torch.are_deterministic_algorithms_enabled())
        print(torch.backends.cudnn.benchmark, os.environ["CUBLAS_WORKSPACE_CONFIG"])
        torch.cuda.is_initialized = lambda: True
        fmkit.enable_op_determinism()  # the setting was there in time
        del os.environ["CUBLAS_WORKSPACE_CONFIG"]
        try:
            fmkit.enable_op_determinism()
        except RuntimeError as error:
            print(error)
        """
    )
    first, second, error = printed.splitlines()
    assert (first, second) == ("True", "False :4096:8")
    assert "start the program with CUBLAS_WORKSPACE_CONFIG=:4096:8" in error


@pytest.mark.backend("tensorflow")
@pytest.mark.long
def test_on_tensorflow_unseeded_draws_are_refused():
    printed = run_python(
        """
        import fmkit
        import tensorflow as tf

        tf.random.uniform(())
        fmkit.enable_op_determinism()
        try:
            tf.random.uniform(())
        except RuntimeError as error:
            print("refused")
        fmkit.set_random_seed(1)
        tf.random.uniform(())
        print("drawn")
        """
    )
    assert printed.split() == ["refused", "drawn"]


@pytest.mark.backend("jax")
@pytest.mark.long
def test_on_jax_the_flag_is_added_to_those_that_are_there():
    printed = run_python(
        """
        import os
        import fmkit
        import jax

        fmkit.enable_op_determinism()
        print(os.environ["XLA_FLAGS"])
        fmkit.enable_op_determinism()
        print(os.environ["XLA_FLAGS"])
        print(float(jax.numpy.ones(3).sum()))  # XLA knows the flags
        del os.environ["XLA_FLAGS"]
        fmkit.enable_op_determinism()  # too late, but on a CPU it does not matter
        jax.default_backend = lambda: "gpu"
        del os.environ["XLA_FLAGS"]
        try:
            fmkit.enable_op_determinism()
        except RuntimeError as error:
            print(error)
        """,
        XLA_FLAGS="--xla_cpu_enable_fast_math=false",
    )
    first, second, total, error = printed.splitlines()
    both = "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"
    assert first == second == both
    assert total == "3.0"
    assert "the GPU is in use already" in error
