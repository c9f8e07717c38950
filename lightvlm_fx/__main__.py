"""`python -m lightvlm_fx` is `lightvlm`."""

from lightvlm_fx.cli import main

main()
