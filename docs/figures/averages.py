"""The figure of the guide "Averages and decay".

`python docs/figures/averages.py [folder]` draws it by running
`examples/ema_fashion_mnist.py` for its 20 epochs: on the full Fashion-MNIST, if this
machine has it (minutes), else on the sample.
"""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(folder: str | Path = HERE) -> None:
    """Run the example; keep its picture in `folder`."""
    path = HERE.parents[1] / "examples" / "ema_fashion_mnist.py"
    spec = importlib.util.spec_from_file_location("ema_fashion_mnist", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with tempfile.TemporaryDirectory() as outputs:
        example.main(folder=outputs)
        shutil.copy(Path(outputs) / example.FIGURE, folder)


if __name__ == "__main__":
    main(*sys.argv[1:2])
