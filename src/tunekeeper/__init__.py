"""Self-hosted fine-tuning behind the OpenAI API, and the upkeep that keeps tuned models alive."""

__version__ = "0.1.0"
