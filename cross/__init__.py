"""What concerns other machines than the one at hand: boards under emulation, software devices, units and packages."""
