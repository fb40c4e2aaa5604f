"""What a test leaves for people: scores with intervals, as CSV, as JSON and as one HTML page."""
