"""Rules on the device: readings become prompts, answers become actions.

Nothing here is loaded by an agent without rules. The middle is pure: :mod:`~edgeslm.agent.rules.loading` turns files
into checked rules, :mod:`~edgeslm.agent.rules.engine` decides, :mod:`~edgeslm.agent.rules.runner` does.
"""
