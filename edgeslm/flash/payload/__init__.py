"""What goes onto a board: the agent, its settings, models, rules, claim and service, as entries of a tree."""
