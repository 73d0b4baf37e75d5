"""What a layer meets in PyTorch, a file for each of its parts; ours holds where torch.nn, as a contrast test shows, fails."""
