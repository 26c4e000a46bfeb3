"""Pure algorithms that choose: what must be measured comes in as a callable, and nothing here knows a device."""
