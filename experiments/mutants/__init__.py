"""Do the tests notice bugs that are planted one at a time?"""
