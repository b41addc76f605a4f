"""What fits on which pod?"""
