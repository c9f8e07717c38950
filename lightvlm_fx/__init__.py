"""lightvlm_fx: a compiler that makes vision-language models cheap to run. `import lightvlm_fx as lightvlm`.

The verbs are resolved on first use, so that importing the package needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightvlm_fx.version import __version__

_HOMES = {
    "compile": "lightvlm_fx.compiler",
    "export": "lightvlm_fx.exporting.export",
    "load": "lightvlm_fx.artifact.load",
    "verify": "lightvlm_fx.artifact.verify",
    "layer_contributions": "lightvlm_fx.calibration",
    "outlier_share": "lightvlm_fx.calibration",
    "explain": "lightvlm_fx.explanation",
    "Explanation": "lightvlm_fx.explanation",
    "Schedule": "lightvlm_fx.schedule",
    "Cut": "lightvlm_fx.schedule",
    "Report": "lightvlm_fx.passing.report",
    "LightVLMError": "lightvlm_fx.errors",
}
__all__ = [
    "Cut", "Explanation", "LightVLMError", "Report", "Schedule", "__version__", "compile", "explain", "export", "layer_contributions",
    "load", "outlier_share", "verify",
]  # fmt: skip

if TYPE_CHECKING:
    from lightvlm_fx.artifact.load import load
    from lightvlm_fx.artifact.verify import verify
    from lightvlm_fx.calibration import layer_contributions, outlier_share
    from lightvlm_fx.compiler import compile
    from lightvlm_fx.errors import LightVLMError
    from lightvlm_fx.explanation import Explanation, explain
    from lightvlm_fx.exporting.export import export
    from lightvlm_fx.passing.report import Report
    from lightvlm_fx.schedule import Cut, Schedule


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            value = getattr(import_module(_HOMES[name]), name)
        except ImportError as error:
            from lightvlm_fx.releases import NO_TORCH, TESTED, untested

            if isinstance(error, ModuleNotFoundError) and error.name == "torch":
                raise ImportError(f"lightvlm_fx.{name} {NO_TORCH}") from error
            if (error.name or "").partition(".")[0] in TESTED and (said := untested()):
                raise ImportError(f"{'; '.join(said)}: {error}", name=error.name) from error
            raise
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lightvlm_fx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
