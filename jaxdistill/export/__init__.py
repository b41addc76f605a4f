"""Export trained models to formats that other libraries load."""
