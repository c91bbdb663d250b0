"""Firmware profiles, one YAML file each, and their rule files. Data only; read with importlib.resources."""
