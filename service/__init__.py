"""The HTTP service: teacher and student behind one small API, and a page that shows them side by side."""
