"""Other people's pretrained networks in ours, on real inputs."""
