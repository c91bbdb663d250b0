"""The operator's side: who belongs to the fleet, what is released, and what each device should run."""
