"""Does a saved package answer as its model does?"""
