"""The device agent: intake, queue, journal, worker, outbox. It sees ports, never adapters."""
