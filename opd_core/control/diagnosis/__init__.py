"""Why a run is as it is: `diagnosing.diagnose` applies every rule to what is recorded about the run.

A rule is a function from `RunEvidence` to a `Finding` or None, and belongs to one family: `end_rules` (the run itself),
`text_rules` (what the student writes), `teacher_rules` (whether there is something to learn), `kl_rules` (whether the
student follows), `held_out_rules` (whether it got better).
"""
