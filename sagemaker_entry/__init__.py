"""Everything that talks to AWS: upload the channels, train as a SageMaker job, rehearse that job here."""
