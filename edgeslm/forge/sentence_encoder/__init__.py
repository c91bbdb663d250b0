"""Sentence encoders of the sentence-transformers form (BERT, mean pooling) as int8 TFLite packages for task `embed`."""
