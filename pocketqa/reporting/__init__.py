"""RESULTS.md and the HTML page out of run files: tables, figures and the audit of published claims."""
