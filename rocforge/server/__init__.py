"""An OpenAI-compatible HTTP server over a Service; needs the extra `server`."""
