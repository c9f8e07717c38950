"""lightvlm_fx inside of other systems, each of which is an extra."""
