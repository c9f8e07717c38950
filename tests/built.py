"""The wheel and the source distribution of this checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_OURS = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")


def build(kind, scratch):
    """The file that setuptools makes of a copy of the checkout in `scratch`; `kind` is wheel or sdist."""
    scratch.mkdir(exist_ok=True)
    copy, target = scratch / "source", scratch / kind
    if not copy.exists():
        shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_OURS)
    target.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made
