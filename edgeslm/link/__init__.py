"""Transport: MQTT over paho, an in-process link for tests, and an embedded broker for demo and tests."""
