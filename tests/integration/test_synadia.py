"""The Synadia Agent Protocol as its own SDKs speak it: their client asks our agents, and their agents are citizens of our mesh."""
