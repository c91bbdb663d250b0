"""int8 TFLite inference: interpreter, generation loop, sampling, tokenizer, prompt forms.

Knows nothing of queues, networks or energy. One model computes on one thread of the caller's at a time.
"""
