"""What stands between a process and its surroundings: a wire that is cut or slow, a cluster that loses nodes, a wrong clock."""
