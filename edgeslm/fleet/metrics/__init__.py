"""What devices report, collected: judged, kept, rolled up, asked for."""
