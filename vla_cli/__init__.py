"""vla-cli: adapt a vision-language-action policy to a robot without making it deaf to instructions."""

__version__ = "0.1.0"
