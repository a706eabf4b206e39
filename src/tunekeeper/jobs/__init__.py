"""The only place that composes: a job's life, from the request to the model, across any number of crashes."""
