"""A page in the browser: drop images, choose a method, see maps and decisions."""
