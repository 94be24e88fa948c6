"""From result files to tables and charts."""
