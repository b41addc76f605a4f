"""Test what people say of distillation; the page collects the verdicts of the other studies."""
