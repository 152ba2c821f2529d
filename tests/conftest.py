"""Shared fixtures. Thread settings come before torch is imported anywhere (platform-facts: OpenMP spin)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
