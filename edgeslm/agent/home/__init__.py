"""The device in a home: shown in Home Assistant, and doing there what an answer means."""
