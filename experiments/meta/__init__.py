"""Can a quiz mend a teacher that learned wrong labels?"""
