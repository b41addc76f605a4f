"""Do other people's weights say here what they say where they were published?"""
