"""What could be done about spikes, on paper: one pure file each, independent of each other."""
