"""Chat templates, the sandbox that they run in, and what replies say: thoughts, calls and content, by families."""
