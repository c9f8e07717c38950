"""Published methods and baselines as schedules. A preset is a function from named options to a Schedule, in a file of its name.

Nothing lists the files: a new one is found by itself. Each function can be imported from here.
"""

from lightvlm_fx.presets.lookup import FUNCTIONS, PRESETS, defaults, make

globals().update(FUNCTIONS)  # in the places of the modules, which have the same names
