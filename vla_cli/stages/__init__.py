"""The five stages. They never import each other: they meet on disk."""
