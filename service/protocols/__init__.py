"""Several questions in one body, and the protocols of others: Hugging Face's question answering and the Open Inference Protocol."""
