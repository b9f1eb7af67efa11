"""What a run would take before it is started: `estimating.estimate`; a paid teacher's part: `paid.estimate_paid`.

Time comes from `speed`. Money is built up from the requests a method makes (`method_calls`), their prices
(`teacher_bill`), and how long an answer of the student can be in one (`answer_bytes`); `words` says it in sentences.
"""
