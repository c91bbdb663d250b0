"""Facts about boards, one YAML file each, with their sources. Data only; read with importlib.resources."""
