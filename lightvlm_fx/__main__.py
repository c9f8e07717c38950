"""`python -m lightvlm_fx` is `lightvlm`."""

from lightvlm_fx.cli.main import main

main()
