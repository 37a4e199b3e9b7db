"""What is measured. One suite a file; each reads a table of responses and returns a `SuiteResult`."""
