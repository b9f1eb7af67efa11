"""The use cases of the light half: what a person or an assistant can ask of runs, without MLX and without a protocol.

`runs` starts, resumes, stops and tells; `supervisor` owns the workers. The rooms beside them each answer one question
about a run: may it start (`preflight`), what would it take (`estimate`), what is in its prompts (`prompts`), why is it
as it is (`diagnosis`), what came of it (`report`).
"""
