"""Real questions through the whole mesh: agents as processes, asked through HTTP, judged by who answered."""
