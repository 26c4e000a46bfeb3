"""Models that answer others: a repository of versions, who answers, and the front ends."""
