"""What the ranks of a group gain: measured on two cores, and planned for GPUs."""
