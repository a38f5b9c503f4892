"""Inside the process of one pipeline step."""
