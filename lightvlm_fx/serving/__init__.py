"""`lightvlm serve`: a model under a schedule, or an artifact, behind OpenAI's chat-completions protocol."""
