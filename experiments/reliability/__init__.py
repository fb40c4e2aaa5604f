"""The reliability score beside what it is compared with, also on pictures that have changed."""
