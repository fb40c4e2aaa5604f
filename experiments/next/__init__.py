"""Which images to mask next: the choice of ``tw-seg next`` against chance."""
